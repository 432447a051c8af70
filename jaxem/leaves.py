"""Leaves of parameters by name: dotted paths, a prefix standing for all below it."""

from __future__ import annotations

from typing import Any

import jax

PyTree = Any


def leaf_names(params: PyTree) -> list[str]:
    """Dotted path of each leaf, in order."""
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def named(names: tuple[str, ...], params: PyTree, argument: str) -> PyTree:
    """A tree of bools like `params`: which leaves are named.

    Args:
        names: dotted paths or prefixes of them.
        params: parameters.
        argument: what the caller calls `names`, for the message.

    Raises:
        ValueError: for a name that matches no leaf.
    """
    known = leaf_names(params)
    for name in names:
        if not any(_under(leaf, name) for leaf in known):
            raise ValueError(f"{argument} must name leaves of the parameters, which are {', '.join(known)}; got {name!r}")
    chosen = [any(_under(leaf, name) for name in names) for leaf in known]
    return jax.tree.unflatten(jax.tree.structure(params), chosen)


def _under(leaf: str, name: str) -> bool:
    return leaf == name or leaf.startswith(name + ".")
