"""Trees in Newick's notation and alignments in FASTA and PHYLIP files."""

import numpy as np
import pytest

import jaxem
from jaxem.data.alignment import encode


def test_newick_round_trip():
    tree = jaxem.read_newick("(human:0.1,(mouse:2e-2,'brown rat':0.3)rodents:0.4[a note],cow:0.5);")
    assert tree.names == ("human", "mouse", "brown rat", "cow")
    assert tree.parents == (5, 4, 4, 5, 5, -1)
    np.testing.assert_array_equal(tree.lengths, [0.1, 0.02, 0.3, 0.5, 0.4])
    again = jaxem.read_newick(tree.newick(), tree.names)
    assert again.parents == tree.parents
    np.testing.assert_array_equal(again.lengths, tree.lengths)
    assert jaxem.read_newick("((a,b),c);").newick() == "(c,(a,b));"


def test_leaves_in_the_order_of_an_alignment():
    tree = jaxem.read_newick("((human:1,(mouse:2,rat:3):4):5,cow:6);", ("cow", "rat", "mouse", "human"))
    assert tree.parents == (6, 4, 4, 5, 5, 6, -1)
    np.testing.assert_array_equal(tree.lengths, [6, 3, 2, 1, 4, 5])
    assert jaxem.Substitution(tree.parents).n_taxa == 4


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("((a,b);", None, "matching parentheses"),
        ("(a,b));", None, "matching parentheses"),
        ("a;", None, "matching parentheses"),
        ("(a,a);", None, "names of their own"),
        ("(a,);", None, "names of their own"),
        ("(a:x,b);", None, "branch lengths must be numbers"),
        ("(a,b);", ("a", "c"), "not in both: b, c"),
    ],
)
def test_bad_trees(text, names, message):
    with pytest.raises(ValueError, match=message):
        jaxem.read_newick(text, names)


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
