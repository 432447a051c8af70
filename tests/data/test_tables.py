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
