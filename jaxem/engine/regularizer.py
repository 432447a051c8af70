"""What restrains a fit beyond its model: penalties, a prior, frozen leaves, tied leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem import constraints as sets
from jaxem.numerics.leaves import as_names, leaf_names, matching, named
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


@struct
class L1:
    """strength * sum of |x| over the named leaves; the M-step sets entries to exactly zero (Tibshirani 1996).

    Attributes:
        strength: in units of log-likelihood; a number, so that changing it compiles nothing again.
        leaves: dotted name, or names, of real-valued leaves, a prefix standing for all below it.
    """

    strength: float | Array
    leaves: str | Iterable[str] = static()

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaves", as_names(self.leaves))

    def __call__(self, params: Params) -> Array:
        return self.strength * _sum(jnp.abs, self.leaves, params, "L1.leaves")


@struct
class L2:
    """strength / 2 * sum of x^2 over the named leaves.

    Attributes:
        strength: in units of log-likelihood.
        leaves: dotted name, or names, of leaves, a prefix standing for all below it.
    """

    strength: float | Array
    leaves: str | Iterable[str] = static()

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaves", as_names(self.leaves))

    def __call__(self, params: Params) -> Array:
        return self.strength / 2 * _sum(jnp.square, self.leaves, params, "L2.leaves")


def _sum(of: Callable[[Array], Array], names: str | Iterable[str], params: Params, argument: str) -> Array:
    chosen = jax.tree.leaves(named(names, params, argument))
    terms = [of(x).sum() for x, on in zip(jax.tree.leaves(params), chosen, strict=True) if on]
    return jnp.asarray(sum(terms))


@struct
class Regularizer:
    """What restrains a fit beyond its model.

    Attributes:
        penalties: callables on the parameters, taken off the objective.
        log_prior: callable on the parameters, added to it; or None.
        frozen: dotted names of leaves that keep their starting values.
        tied: groups of dotted names whose leaves share one value.
    """

    penalties: tuple[Callable[[Params], Array], ...] = ()
    log_prior: Callable[[Params], Array] | None = None
    frozen: tuple[str, ...] = static(default=())
    tied: tuple[tuple[str, ...], ...] = static(default=())

    @property
    def in_users_units(self) -> bool:
        """Whether it must see the parameters in the data's own units."""
        return bool(self.penalties or self.log_prior or self.tied)

    @property
    def idle(self) -> bool:
        """Whether it restrains nothing."""
        return not (self.in_users_units or self.frozen)

    def value(self, params: Params) -> Array | float:
        """Log-prior - penalties."""
        prior = self.log_prior(params) if self.log_prior else 0.0
        return prior - sum(penalty(params) for penalty in self.penalties)

    def smooth(self, params: Params) -> Array | float:
        """The part of `value` that has a gradient everywhere."""
        prior = self.log_prior(params) if self.log_prior else 0.0
        return prior - sum(p(params) for p in self.penalties if not isinstance(p, L1))

    def thresholds(self, params: Params) -> list[Array | float | None]:
        """The L1 strength on each leaf, in order; None where there is none."""
        strengths: list[Array | float | None] = [None] * len(jax.tree.leaves(params))
        for penalty in self.penalties:
            if isinstance(penalty, L1):
                chosen = jax.tree.leaves(named(penalty.leaves, params, "L1.leaves"))
                strengths = [
                    penalty.strength + (0 if s is None else s) if on else s for s, on in zip(strengths, chosen, strict=True)
                ]
        return strengths

    def constraints(self, constraints: PyTree, params: Params) -> PyTree:
        """A model's constraints, with frozen leaves fixed."""
        if not self.frozen:
            return constraints
        full = sets.broadcast(constraints, params)
        frozen = named(self.frozen, params, "frozen")
        return jax.tree.map(lambda on, c: sets.Fixed() if on else c, frozen, full)

    def moves(self, params: Params) -> PyTree:
        """Tree of bools: leaves that an M-step sets, one of each tied group."""
        frozen = jax.tree.leaves(named(self.frozen, params, "frozen"))
        followers = {i for group in self._groups(params) for i in group[1:]}
        on = [not f and i not in followers for i, f in enumerate(frozen)]
        return jax.tree.unflatten(jax.tree.structure(params), on)

    def restrained(self, params: Params) -> tuple[str, ...]:
        """Names of the other leaves."""
        return tuple(name for name, on in zip(leaf_names(params), jax.tree.leaves(self.moves(params)), strict=True) if not on)

    def shared(self, params: Params) -> Params:
        """Parameters in which all of a tied group are its first."""
        leaves, structure = jax.tree.flatten(params)
        for group in self._groups(params):
            for i in group[1:]:
                leaves[i] = leaves[group[0]]
        return jax.tree.unflatten(structure, leaves)

    def restored(self, new: Params, old: Params) -> Params:
        """`new` as far as it is allowed: frozen leaves as in `old`, tied ones at their average."""
        leaves, structure = jax.tree.flatten(new)
        for group in self._groups(new):
            mean = sum(leaves[i] for i in group) / len(group)
            for i in group:
                leaves[i] = mean
        frozen = jax.tree.leaves(named(self.frozen, new, "frozen"))
        kept = [o if f else n for n, o, f in zip(leaves, jax.tree.leaves(old), frozen, strict=True)]
        return jax.tree.unflatten(structure, kept)

    def _groups(self, params: Params) -> list[list[int]]:
        """Positions of leaves that share a value; subtrees are tied leaf by leaf."""
        known, leaves = leaf_names(params), jax.tree.leaves(params)
        groups = []
        for names in self.tied:
            members = [[known.index(leaf) for leaf in matching(name, known, "tied")] for name in names]
            shapes = [[jnp.shape(leaves[i]) for i in each] for each in members]
            if any(s != shapes[0] for s in shapes):
                raise ValueError(f"tied leaves must have equal shapes; got {dict(zip(names, shapes, strict=True))}")
            groups += [list(same) for same in zip(*members, strict=True)]
        return groups

    def check(self, constraints: PyTree, params: Params) -> None:
        """Raise ValueError for names that match no leaf, unequal tied shapes, or L1 on a leaf that is not real."""
        self.moves(params)
        full = jax.tree.leaves(sets.broadcast(constraints, params), is_leaf=lambda c: isinstance(c, sets.Real))
        for name, c, strength in zip(leaf_names(params), full, self.thresholds(params), strict=True):
            if type(c) is not sets.Real and strength is not None:
                raise ValueError(f"L1.leaves must be real-valued leaves; {name} is constrained to {type(c).__name__}")


def regularizer(penalty: Any, log_prior: Any, frozen: Any, tied: Any) -> Regularizer:
    """The arguments of `fit` in one piece.

    Args:
        penalty: a callable on the parameters, or a sequence of them; None for none. A plain function's identity
            is structure; the numbers in a registered dataclass or a `jax.tree_util.Partial` are leaves.
        log_prior: a callable on the parameters, or None.
        frozen: dotted names, or a prefix tree of bools.
        tied: groups of dotted names, or a prefix tree of labels; leaves of one label share a value.

    Raises:
        TypeError: for what is not callable, or no such names.
    """
    penalties = () if penalty is None else tuple(penalty) if isinstance(penalty, tuple | list) else (penalty,)
    prior = None if log_prior is None else _callable(log_prior, "log_prior")
    return Regularizer(tuple(_callable(p, "penalty") for p in penalties), prior, _frozen_names(frozen), _tied_names(tied))


def _callable(function: Any, argument: str) -> Any:
    if not callable(function):
        raise TypeError(f"{argument} must be a function of the parameters; got {type(function).__name__}")
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function


def _frozen_names(frozen: Any) -> tuple[str, ...]:
    if frozen is None:
        return ()
    if isinstance(frozen, str) or (isinstance(frozen, tuple | list) and all(isinstance(name, str) for name in frozen)):
        return as_names(frozen)
    paths = jax.tree_util.tree_leaves_with_path(frozen)
    if not all(isinstance(on, bool) for _, on in paths):
        raise TypeError(f"frozen must be names of leaves or a prefix tree of bools; got {frozen!r}")
    return tuple(jax.tree_util.keystr(path, simple=True, separator=".") for path, on in paths if on)


def _tied_names(tied: Any) -> tuple[tuple[str, ...], ...]:
    if tied is None:
        return ()
    if isinstance(tied, tuple | list):
        if not all(isinstance(group, tuple | list) and all(isinstance(n, str) for n in group) for group in tied):
            raise TypeError(f"tied must be groups of names of leaves or a prefix tree of labels; got {tied!r}")
        return tuple(tuple(group) for group in tied)
    groups: dict[Any, list[str]] = {}
    for path, label in jax.tree_util.tree_leaves_with_path(tied):
        groups.setdefault(label, []).append(jax.tree_util.keystr(path, simple=True, separator="."))
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)
