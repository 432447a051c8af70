"""Leaves of parameters by name: dotted paths, a prefix standing for all below it."""

from __future__ import annotations

from collections.abc import Iterable

import jax

from jaxem.pytree import PyTree


def leaf_names(params: PyTree) -> list[str]:
    """Dotted path of each leaf, in order."""
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def spread(prefix: PyTree, tree: PyTree) -> PyTree:
    """A prefix tree of bools spelled out to the full structure of `tree`."""
    return jax.tree.map(lambda p, sub: jax.tree.map(lambda _: p, sub), prefix, tree)


def as_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names as structure, which is hashed: one string is one name."""
    return (names,) if isinstance(names, str) else tuple(names)


def named(names: str | Iterable[str], params: PyTree, argument: str) -> PyTree:
    """A tree of bools like `params`: which leaves are named.

    Args:
        names: a dotted path or several, or prefixes of them.
        params: parameters.
        argument: what the caller calls `names`, for the message.

    Raises:
        ValueError: for a name that matches no leaf.
    """
    known = leaf_names(params)
    chosen = {leaf for name in as_names(names) for leaf in matching(name, known, argument)}
    return jax.tree.unflatten(jax.tree.structure(params), [leaf in chosen for leaf in known])


def matching(name: str, known: list[str], argument: str) -> list[str]:
    """Which of the `known` leaves `name` stands for.

    Raises:
        ValueError: where it stands for none.
    """
    found = [leaf for leaf in known if leaf == name or leaf.startswith(name + ".")]
    if not found:
        raise ValueError(f"{argument} must name leaves of the parameters, which are {', '.join(known)}; got {name!r}")
    return found
