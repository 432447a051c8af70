"""Trees in Newick's notation."""

import numpy as np
import pytest

import jaxem


def test_newick_round_trip():
    tree = jaxem.read_newick("(human:0.1,(mouse:2e-2,'brown rat':0.3)rodents:0.4[a note],cow:0.5);")
    assert tree.names == ("human", "mouse", "brown rat", "cow")
    assert tree.parents == (5, 4, 4, 5, 5, -1)
    np.testing.assert_array_equal(tree.lengths, [0.1, 0.02, 0.3, 0.5, 0.4])
    again = jaxem.read_newick(tree.newick(), tree.names)
    assert again.parents == tree.parents
    np.testing.assert_array_equal(again.lengths, tree.lengths)
    assert jaxem.read_newick("((a,b),c);").newick() == "(c,(a,b));"


def test_what_programs_write_around_a_tree():
    tree = jaxem.read_newick("\ufeff[&R] ( 'it''s' : +1. ,\n b[&x=1]:.5E-1 [c]) 99 : 0.2 ; [the end]\n")
    assert tree.names == ("it's", "b")
    np.testing.assert_array_equal(tree.lengths, [1, 0.05])


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
        ("(Homo sapiens,b);", None, "got 'sapiens' at 6, after a label; a name with blanks .* between single quotes"),
        ("(a:100:1:95,b);", None, "got ':' at 6, after a number; a node has one branch length"),
        ("(a,b);(c,d);", None, "must hold one tree; got more at 6"),
        ("(a)(b);", None, r"got '\(' at 3, after a \)"),
        ("(a(b,c),d);", None, r"got '\(' at 2, after a label"),
        ("(a:1,b:", None, "matching parentheses"),
        ("(a,b):", None, "a branch length after its last colon"),
        ("(a:inf,b);", None, "branch lengths must be numbers; got 'inf'"),
        ("(a:1e999,b);", None, "branch lengths must be numbers; got '1e999'"),
        ("(a:1_0,b);", None, "branch lengths must be numbers; got '1_0'"),
        ("(a:\u0663,b);", None, "branch lengths must be numbers"),
        ("('',b);", None, "names of their own"),
        ("(a,b)[a note that does not end;", None, r"got '\[a note.* at 5"),
    ],
)
def test_bad_trees(text, names, message):
    with pytest.raises(ValueError, match=message):
        jaxem.read_newick(text, names)
