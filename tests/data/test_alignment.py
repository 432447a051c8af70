"""Alignments in FASTA and PHYLIP files."""

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
