"""What is made of families: all that concerns a part's density is handed to the part."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.families.base import Family
from jaxem.model import Natural
from jaxem.pytree import PyTree
from jaxem.types import Params


class Composite(Natural):
    """Parameters, natural parameters and statistics hold those of the parts: by default those of one family, under one name."""

    #: Name of the family's entry in parameters and natural parameters.
    part: ClassVar[str]
    #: Name of the dataclass field that holds the family.
    family_field: ClassVar[str]
    #: Constraints of the parameters that are no part's.
    own_constraints: ClassVar[dict[str, Any]] = {}

    # --- where the parts are -----------------------------------------------------------------
    @property
    def parts(self) -> Sequence[Family]:
        """The families."""
        return (getattr(self, self.family_field),)

    def with_parts(self, parts: Sequence[Family]) -> Any:
        """The same structure of other families."""
        return dataclasses.replace(self, **{self.family_field: parts[0]})  # type: ignore[type-var]

    def split(self, tree: PyTree) -> Sequence[PyTree]:
        """What belongs to each part."""
        return (tree[self.part],)

    def joined(self, tree: PyTree, parts: Sequence[PyTree]) -> PyTree:
        """`tree` with `parts` where `split` found them."""
        return {**tree, self.part: parts[0]}

    def inner(self, params: Params) -> Params:
        """Parameters as the parts have them."""
        return params

    def outer(self, params: Params) -> Params:
        """The way back from `inner`."""
        return params

    def own_pseudo_stats(self, params: Params) -> dict[str, Array] | None:
        """Pseudo-statistics of natural leaves that are no part's, or None."""
        del params
        return None

    # --- what is theirs ----------------------------------------------------------------------
    def _each(self, method: str, *trees: PyTree, **shared: Any) -> list[Any]:
        """What a method of every part gives for its own in each of `trees`."""
        own = zip(*map(self.split, trees), strict=True)
        return [getattr(part, method)(*of, **shared) for part, of in zip(self.parts, own, strict=True)]

    @property
    def constraints(self) -> Any:  # type: ignore[override]
        return self.joined(self.own_constraints, [part.constraints for part in self.parts])

    @property
    def missing(self) -> str | None:  # type: ignore[override]
        return self.parts[0].missing

    @property
    def m_step(self) -> Any:  # type: ignore[override]
        """Closed where it is for every part."""
        return None if any(part.m_step is None for part in self.parts) else self._m_step

    def _m_step(self, stats: PyTree, params: Params) -> Params:
        params = self.inner(params)
        return self.outer(self.joined(params, self._each("m_step", stats, params)))

    @property
    def scoring_step(self) -> Any:  # type: ignore[override]
        """Of the parts that have one."""
        return None if all(part.scoring_step is None for part in self.parts) else self._scoring_step

    def _scoring_step(self, stats: PyTree, params: Params, new: Params) -> Params:
        new = self.inner(new)
        each = zip(self.parts, *map(self.split, (stats, self.inner(params), new)), strict=True)
        ahead = [own if part.scoring_step is None else part.scoring_step(s, p, own) for part, s, p, own in each]
        return self.outer(self.joined(new, ahead))

    @property
    def spurious(self) -> Any:  # type: ignore[override]
        """Where it is in any part that can tell."""
        return None if all(part.spurious is None for part in self.parts) else self._spurious

    def _spurious(self, stats: PyTree, params: Params) -> Array:
        each = zip(self.parts, *map(self.split, (stats, self.inner(params))), strict=True)
        return functools.reduce(jnp.logical_or, [part.spurious(s, p) for part, s, p in each if part.spurious is not None])

    @property
    def m_step_is_maximum(self) -> bool:  # type: ignore[override]
        return all(part.m_step is not None and part.m_step_is_maximum for part in self.parts)

    def natural(self, params: Params) -> PyTree:
        """Leaves of the parts."""
        return self.joined({}, self._each("natural", self.inner(params)))

    def pack(self, natural: PyTree) -> PyTree:
        return self.joined(natural, self._each("pack", natural))

    def centered(self, params: Params) -> Any:
        return self.with_parts(self._each("centered", self.inner(params)))

    def recentered(self, stats: PyTree, params: Params) -> PyTree:
        return self.joined(stats, self._each("recentered", stats, self.inner(params)))

    def variants(self, params: Params) -> tuple[Array | int, tuple[Any, ...]]:
        """As many as the part with most of them has; a part that has fewer takes its last."""
        safe, each = zip(*self._each("variants", self.inner(params)), strict=True)
        chosen = ([own[min(i, len(own) - 1)] for own in each] for i in range(max(map(len, each))))
        return functools.reduce(jnp.maximum, safe), tuple(map(self.with_parts, chosen))

    def pseudo_stats(self, params: Params) -> PyTree | None:
        own, each = self.own_pseudo_stats(params), self._each("pseudo_stats", self.inner(params))
        if own is None and all(x is None for x in each):
            return None
        zero = jax.tree.map(jnp.zeros_like, self.natural(params))
        each = [z if x is None else x for x, z in zip(each, self.split(zero), strict=True)]
        return self.joined(zero if own is None else {**zero, **own}, each)

    def at_floor(self, params: Params) -> PyTree:
        params = self.inner(params)
        return self.outer(self.joined(super().at_floor(params), self._each("at_floor", params)))

    def at_limit(self, params: Params) -> PyTree:
        params = self.inner(params)
        return self.outer(self.joined(super().at_limit(params), self._each("at_limit", params)))

    def floored(self, data: PyTree, weight: Array | None) -> Any:
        return self._with_floors([data for _ in self.parts], weight)

    def _with_floors(self, seen: Sequence[PyTree], weight: Array | None) -> Any:
        """With every part's floors, from the data that it sees."""
        parts = self.parts
        new = [part.floored(data, weight) for part, data in zip(parts, seen, strict=True)]
        return self if all(n is part for n, part in zip(new, parts, strict=True)) else self.with_parts(new)

    def prepared(self, data: PyTree) -> Any:
        return self.with_parts([part.prepared(data) for part in self.parts])

    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> Any:
        return self.parts[0].coordinates(data, xp, present)

    def log_abs_det(self, data: PyTree, affine: Any) -> Array | float:
        return self.parts[0].log_abs_det(data, affine)

    def rescaled(self, affine: Any) -> Any:
        return self.with_parts([part.rescaled(affine) for part in self.parts])

    def rescale_params(self, params: Params, affine: Any) -> Params:
        params = self.inner(params)
        return self.outer(self.joined(params, self._each("rescale_params", params, affine=affine)))
