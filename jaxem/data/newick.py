"""Trees in Newick's notation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxem.pytree import static, struct

_TOKEN = re.compile(r"\s*(?:\[[^\]]*\]\s*)*('(?:[^']|'')*'|[(),;:]|[^\s(),;:'\[]+)")


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
        ValueError: for what is no tree, or leaves other than `names`.
    """
    tokens, position = [], 0
    text = text.strip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"text must be a tree in Newick's notation; got {text[position : position + 20]!r} at {position}")
        tokens.append(match.group(1))
        position = match.end()

    # Nodes in the order in which they open, each [parent, label, length].
    nodes: list[list[Any]] = [[-1, None, np.nan]]
    at, inner = 0, set()
    for i, token in enumerate(tokens):
        if token == "(":
            inner.add(at)
            nodes.append([at, None, np.nan])
            at = len(nodes) - 1
        elif token in ",)":
            parent = nodes[at][0]
            if parent < 0:
                raise ValueError(f"text must have matching parentheses; got a stray {token!r}")
            at = parent
            if token == ",":
                nodes.append([parent, None, np.nan])
                at = len(nodes) - 1
        elif token == ";":
            break
        elif i and tokens[i - 1] == ":":
            nodes[at][2] = _length(token)
        elif token != ":":
            nodes[at][1] = token[1:-1].replace("''", "'") if token[0] == "'" else token
    if at != 0 or not inner:
        raise ValueError(f"text must have matching parentheses around at least one group of leaves; got {text[:60]!r}")
    return _ordered(nodes, inner, names)


def _length(token: str) -> float:
    try:
        return float(token)
    except ValueError:
        raise ValueError(f"branch lengths must be numbers; got {token!r}") from None


def _ordered(nodes: list[list[Any]], inner: set[int], names: Sequence[str] | None) -> Tree:
    leaves = [node for node in range(len(nodes)) if node not in inner]
    labels = [nodes[leaf][1] for leaf in leaves]
    if None in labels or len(set(labels)) < len(labels):
        raise ValueError(f"leaves must have names of their own; got {labels}")
    if names is not None:
        if sorted(labels) != sorted(names):
            odd = sorted(set(labels) ^ set(names))
            raise ValueError(f"names must be those of the tree's leaves; these are not in both: {', '.join(odd)}")
        leaves = [leaves[labels.index(name)] for name in names]
    # A node opens before all below it: backwards, children come before parents and the root last.
    order = leaves + sorted(inner, reverse=True)
    place = {node: i for i, node in enumerate(order)}
    return Tree(
        parents=tuple(place.get(nodes[node][0], -1) for node in order),
        names=tuple(nodes[leaf][1] for leaf in leaves),
        lengths=np.array([nodes[node][2] for node in order[:-1]]),
    )
