"""What a check says: the laws that ran, those skipped and why, and the error that names a broken one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxem.pytree import PyTree


class LawError(AssertionError):
    """A model broke a law.

    Attributes:
        law: name of the law.
    """

    def __init__(self, law: str, message: str):
        super().__init__(f"{law}: {message}")
        self.law = law


class Broken(Exception):  # noqa: N818
    """Raised inside a law; becomes a `LawError` that carries the law's name."""


class Skip(Exception):  # noqa: N818
    """Raised inside a law that has nothing to say about a model; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Law:
    """A law: its name in a report, and the function that raises `Broken` or `Skip`."""

    name: str
    check: Callable[[Any], None]


def law(name: str) -> Callable[[Callable[[Any], None]], Law]:
    """Make a function of a `Case` a `Law`."""
    return lambda check: Law(name, check)


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check_model` returns when no law broke.

    Attributes:
        model: name of the model's class.
        dtype: in which the laws were checked.
        ran: names of the laws that held, in the order in which they ran.
        skipped: reason for each law that did not run.
    """

    model: str
    dtype: str
    ran: list[str]
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.model} in {self.dtype}: {len(self.ran)} laws hold, {len(self.skipped)} skipped"]
        lines += [f"  holds    {name}" for name in self.ran]
        lines += [f"  skipped  {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def require(holds: Any, message: str) -> None:
    """Raise `Broken` unless `holds`; a comparison with NaN does not."""
    if not bool(holds):
        raise Broken(message)


def compare(got: PyTree, wanted: PyTree, bound: PyTree, what: str) -> None:
    """Raise `Broken`, naming the leaf, where two trees differ by more than `bound` (a number for each leaf, or one for all)."""
    if jax.tree.structure(got) != jax.tree.structure(wanted):
        raise Broken(f"{what}: expected the structure {jax.tree.structure(wanted)}; got {jax.tree.structure(got)}")
    leaves = jax.tree_util.tree_leaves_with_path(got)
    bounds = jax.tree.leaves(bound)
    bounds = bounds * len(leaves) if len(bounds) == 1 else bounds
    for (path, g), w, b in zip(leaves, jax.tree.leaves(wanted), bounds, strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        where = f"{what}{jax.tree_util.keystr(path)}"
        if g.shape != w.shape:
            raise Broken(f"{where}: expected shape {w.shape}; got {g.shape}")
        # Equal infinities agree: their difference is NaN.
        gap = np.where(g == w, 0, np.abs(g - w))
        if gap.size and not (gap <= b).all():
            i = np.unravel_index(np.argmax(np.where(np.isnan(gap), np.inf, gap)), gap.shape)
            raise Broken(f"{where}: expected {w[i]:.9g}; got {g[i]:.9g}; they may differ by {float(b):.2g}")
