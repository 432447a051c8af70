"""Tables of several dialects."""

import numpy as np
import pytest

from jaxem.data import tables as io


@pytest.mark.parametrize(("separator", "mark"), [(",", ""), (";", "\ufeff"), ("\t", "")])
def test_tables_of_several_dialects(tmp_path, separator, mark):
    path = tmp_path / "table.csv"
    path.write_text(f'{mark}"a"{separator}b\r\n1{separator}2.5e1\r\n\r\n-3{separator} 4\r\n', encoding="utf-8")
    names, values = io.read_table(path)
    assert names == ["a", "b"]
    np.testing.assert_array_equal(values, [[1, 25], [-3, 4]])


def table(tmp_path, text, **options):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    names, values = io.read_table(path, **options)
    return names, values.tolist()


def test_lines_end_where_csv_says_they_do(tmp_path):
    assert table(tmp_path, 'a\u2028x\x0by,"b\nc"\n1,2\n') == (["a\u2028x\x0by", "b\nc"], [[1, 2]])
    assert table(tmp_path, "a,b\r1,2\r") == (["a", "b"], [[1, 2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\x0b3,4\n", "line 2 has 3 fields where 2 were expected"),
        ('a,b\n1,"2\n3,4\n', "not a CSV file"),
        ("a,b\n1,\u0663\n", "column 'b', line 2: '\u0663' is not a number"),
        ("a,b\0\n1,2\n", "line 1: not a UTF-8 text file"),
        ("a\n" + "9" * 1000 + "x\n", r"column 'a', line 2: '9{39}\.\.\. is not a number"),
        ("2021,2022\n5,6\n", r"line 1: could be a header or a row of numbers \('2021,2022'\); .*--header"),
        ("0,1,2\n5,6,7\n", "line 1: could be a header"),
        ("id,x\n1,5\n2,6\n3,7\n", "column 'id' numbers the rows; .*--index"),
        ("0,5\n1,6\n2,7\n", "column 'column 1' numbers the rows"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"table\.csv: {message}"):
        table(tmp_path, text)


def test_headers_of_numbers_and_numbered_rows(tmp_path):
    years, numbered = "2021,2022\n5,6\n", "id,x\n1,5\n2,6\n3,7\n"
    assert table(tmp_path, years, header=True) == (["2021", "2022"], [[5, 6]])
    assert table(tmp_path, years, header=False) == (["column 1", "column 2"], [[2021, 2022], [5, 6]])
    assert table(tmp_path, numbered, index=True) == (["x"], [[5], [6], [7]])
    assert table(tmp_path, numbered, index=False) == (["id", "x"], [[1, 5], [2, 6], [3, 7]])
    assert table(tmp_path, ',x\n"1",5\n"2",6\n"3",7\n') == (["x"], [[5], [6], [7]])  # as R and pandas write it
