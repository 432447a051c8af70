"""Alignments in FASTA and PHYLIP files."""

import gzip

import numpy as np
import pytest

import jaxem
from jaxem.data.alignment import encode

FILES = {
    "fasta": ">one first\nACGT\nRY-N\n>two\nacgtnn\nUU\n",
    "sequential": "2 8\none ACGT\nRY-N\ntwo acgt nnUU\n",
    "interleaved": "2 8\none ACGT\ntwo acgt\n\nRY-N\nnnUU\n",
}


@pytest.mark.parametrize("kind", FILES)
def test_alignments(tmp_path, kind):
    path = tmp_path / kind
    path.write_text(FILES[kind])
    alignment = jaxem.read_alignment(path)
    assert alignment.names == ("one", "two")
    np.testing.assert_array_equal(alignment.codes.T, [[0, 1, 2, 3, 4, 5, -1, -1], [0, 1, 2, 3, -1, -1, 3, 3]])
    patterns, weight, index = alignment.patterns()
    np.testing.assert_array_equal(patterns[index], alignment.codes)
    assert weight.sum() == 8 and len(patterns) == 7


def test_marks_line_ends_and_blanks_of_other_systems(tmp_path):
    path = tmp_path / "file"
    for text in (
        "\ufeff>one\u2028first\r\nAC GT\r\n>two\r\nACGT",
        ">one\rACGT\r>two\rACGT\r",
        "\ufeff2 4\r\none ACGT\r\ntwo ACGT",
    ):
        path.write_bytes(text.encode())
        assert jaxem.read_alignment(path).names == ("one", "two") and (jaxem.read_alignment(path).codes[:, 1] == range(4)).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b">a\nA\n", mtime=0), "compressed by gzip"),
        (b">a\nA\n>B\xe4r\nA\n", "line 3: not a UTF-8 text file"),
        (b">a\nA\0\n", "line 2: not a UTF-8 text file"),
        (">a\nA\u0100\n".encode(), "line 2: sequences must consist of .*got '\u0100'"),
        (b">a\nAC\n\n>b\nA*\n", r"line 5: sequences must consist of .*got '\*'"),
        (b">\nA\n", "line 1: a sequence must have a name"),
        (b"0 0\n", "begins with '0 0'"),
        ("\u00b2 2\na AC\nb AC\n".encode(), "begins with"),
        (b"2 2\na AC\nb AC\nc AC\n", "must hold 2 sequences of 2 sites"),
    ],
)
def test_what_no_program_reads_is_refused_by_file_and_line(tmp_path, content, message):
    (tmp_path / "some.fa").write_bytes(content)
    with pytest.raises(ValueError, match=rf"some\.fa.*{message}"):
        jaxem.read_alignment(tmp_path / "some.fa")


def test_patterns_count_sites():
    codes = encode(["AACAA", "CCGCC"])
    patterns, weight, index = jaxem.Alignment(("a", "b"), codes).patterns()
    np.testing.assert_array_equal(patterns, [[0, 1], [1, 2]])
    np.testing.assert_array_equal(weight, [4, 1])
    np.testing.assert_array_equal(index, [0, 0, 1, 0, 0])


def test_bad_alignments(tmp_path):
    with pytest.raises(ValueError, match="got 'Z' in 1, site 2"):
        encode(["AC", "AZ"])
    with pytest.raises(ValueError, match="must have one length, at least 1; got a 2, b 1"):
        encode(["AC", "A"], ("a", "b"))
    for text, message in (("", "is empty"), ("hello\n", "begins with 'hello'"), (">a\nA\n>a\nC\n", "got a twice"),
                          ("2 3\na ACG\nb AC\n", "2 sequences of 3 sites")):  # fmt: skip
        path = tmp_path / "file"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            jaxem.read_alignment(path)
