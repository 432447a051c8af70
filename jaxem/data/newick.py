"""Trees in Newick's notation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from jaxem.data.text import shortened
from jaxem.pytree import static, struct

_BLANKS = re.compile(r"(?:\s+|\[[^\]]*\])*+")  # comments among them
_TOKEN = re.compile(r"'(?:[^']|'')*'|[(),;:]|[^\s(),;:'\[\]]+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
#: What may stand after a token of each kind.
_AFTER = {
    "": "(",
    "(": "(,):label",
    ",": "(,):label",
    ")": ",):;label",
    "label": ",):;",
    ":": "number",
    "number": ",);",
    ";": "",
}


@struct
class Tree:
    """A rooted tree: leaves first, children before parents, the root last.

    Attributes:
        parents: parent of each node, -1 for the root.
        names: of the leaves, in their order.
        lengths: (E,) length of the branch above each node but the root; NaN where none was given.
    """

    parents: tuple[int, ...] = static()
    names: tuple[str, ...] = static()
    lengths: Any

    def newick(self, lengths: Any = None) -> str:
        """The tree in Newick's notation, with these branch lengths or its own."""
        lengths = np.asarray(self.lengths if lengths is None else lengths)
        text = ["'" + n.replace("'", "''") + "'" if re.search(r"[\s(),;:'\[\]]", n) else n for n in self.names]
        text += [""] * (len(self.parents) - len(text))
        children: list[list[str]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents):
            own = ("(" + ",".join(children[node]) + ")" if children[node] else "") + text[node]
            if parent < 0:
                return own + ";"
            children[parent].append(own if np.isnan(lengths[node]) else f"{own}:{lengths[node]:.10g}")
        raise ValueError("parents must hold one root, marked by -1; got none")


def read_newick(text: str, names: Sequence[str] | None = None) -> Tree:
    """A tree from Newick's notation; labels of inner nodes are dropped.

    Args:
        text: e.g. "(human:0.1,(mouse:0.1,rat:0.1):0.2,cow:0.2);"
        names: the order in which the leaves are to come, that of an alignment's columns; None: as they appear.

    Raises:
        ValueError: for what is no tree or more than one, or leaves other than `names`.
    """
    # Nodes in the order in which they open, each [parent, label, length].
    nodes: list[list[Any]] = [[-1, None, np.nan]]
    at, inner, last = 0, set(), ""
    for position, token in _tokens(text.removeprefix("\ufeff")):
        kind = token if token in "(),:;" else "number" if last == ":" else "label"
        if kind not in _AFTER[last]:
            _refuse(text, position, last, token)
        last = kind
        if kind == "(":
            inner.add(at)
            nodes.append([at, None, np.nan])
            at = len(nodes) - 1
        elif kind in (",", ")"):
            parent = nodes[at][0]
            if parent < 0:
                raise ValueError(f"text must have matching parentheses; got a stray {token!r} at {position}")
            at = parent
            if kind == ",":
                nodes.append([parent, None, np.nan])
                at = len(nodes) - 1
        elif kind == "number":
            nodes[at][2] = _length(token)
        elif kind == "label":
            nodes[at][1] = token[1:-1].replace("''", "'") if token[0] == "'" else token
    if at != 0 or not inner:
        got = shortened(text, 60)
        raise ValueError(f"text must have matching parentheses around at least one group of leaves; got {got}")
    if last == ":":
        raise ValueError("text must have a branch length after its last colon; it ends there")
    return _ordered(nodes, inner, names)


def _tokens(text: str) -> Iterator[tuple[int, str]]:
    position = 0
    while True:
        position = _BLANKS.match(text, position).end()  # type: ignore[union-attr]
        if position == len(text):
            return
        match = _TOKEN.match(text, position)
        if match is None:
            got = shortened(text[position : position + 20])
            raise ValueError(f"text must be a tree in Newick's notation; got {got} at {position}")
        yield position, match.group()
        position = match.end()


def _refuse(text: str, position: int, last: str, token: str) -> NoReturn:
    """Raise ValueError that says what is wrong with a token where it stands."""
    if not last:
        raise ValueError(f"text must have matching parentheses around at least one group of leaves; got {shortened(text, 60)}")
    if last == ";":
        raise ValueError(f"text must hold one tree; got more at {position}, after its semicolon: {shortened(token)}")
    reasons = {
        "label": "a name with blanks or parentheses in it stands between single quotes",
        "number": "a node has one branch length",
        ":": "a colon is followed by a branch length",
        ")": "groups are parted by commas",
    }
    why = f"; {reasons[last]}" if last in reasons else ""
    raise ValueError(f"text must be a tree in Newick's notation; got {shortened(token)} at {position}, after a {last}{why}")


def _length(token: str) -> float:
    if not _NUMBER.fullmatch(token) or not np.isfinite(float(token)):
        raise ValueError(f"branch lengths must be numbers; got {shortened(token)}")
    return float(token)


def _ordered(nodes: list[list[Any]], inner: set[int], names: Sequence[str] | None) -> Tree:
    leaves = [node for node in range(len(nodes)) if node not in inner]
    labels = [nodes[leaf][1] for leaf in leaves]
    if not all(labels) or len(set(labels)) < len(labels):
        raise ValueError(f"leaves must have names of their own; got {shortened(labels, 200)}")
    if names is not None:
        if sorted(labels) != sorted(names):
            odd = sorted(set(labels) ^ set(names))
            raise ValueError(f"names must be those of the tree's leaves; these are not in both: {', '.join(odd[:20])}")
        of_name = dict(zip(labels, leaves, strict=True))
        leaves = [of_name[name] for name in names]
    # A node opens before all below it: backwards, children come before parents and the root last.
    order = leaves + sorted(inner, reverse=True)
    place = {node: i for i, node in enumerate(order)}
    return Tree(
        parents=tuple(place.get(nodes[node][0], -1) for node in order),
        names=tuple(nodes[leaf][1] for leaf in leaves),
        lengths=np.array([nodes[node][2] for node in order[:-1]]),
    )
