"""What is made of families: all that concerns a part's density is handed to the part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.families.base import Family
from jaxem.model import Natural
from jaxem.pytree import PyTree
from jaxem.types import Params


class Composite(Natural):
    """Parameters and natural parameters hold each part's where `parts` holds the part."""

    @property
    def parts(self) -> Any:
        """A family, a tuple of families, or a dict of them; a dict's other parameters are this structure's own."""
        raise NotImplementedError

    def with_parts(self, parts: Any) -> Any:
        """The same structure of other parts."""
        raise NotImplementedError

    def inner(self, params: Params) -> Params:
        """Parameters as the parts have them."""
        return params

    def outer(self, params: Params) -> Params:
        """The way back from `inner`."""
        return params

    def _each(self, of: Callable[..., Any], *trees: PyTree) -> Any:
        parts = self.parts
        if not isinstance(parts, dict):
            return jax.tree.map(of, parts, *trees, is_leaf=_is_family)
        new = {name: of(part, *(tree[name] for tree in trees)) for name, part in parts.items()}
        return {**trees[0], **new} if trees else new

    def _all(self) -> list[Family]:
        return jax.tree.leaves(self.parts, is_leaf=_is_family)

    @property
    def m_step_is_maximum(self) -> bool:  # type: ignore[override]
        return all(part.m_step is not None and part.m_step_is_maximum for part in self._all())

    @property
    def missing(self) -> str | None:  # type: ignore[override]
        return self._all()[0].missing

    def pack(self, natural: PyTree) -> PyTree:
        return self._each(lambda part, eta: part.pack(eta), natural)

    def centered(self, params: Params) -> Any:
        return self.with_parts(self._parts_only(self._each(lambda part, p: part.centered(p), self.inner(params))))

    def _parts_only(self, tree: Any) -> Any:
        return {name: tree[name] for name in self.parts} if isinstance(self.parts, dict) else tree

    def recentered(self, stats: PyTree, params: Params) -> PyTree:
        return self._each(lambda part, s, p: part.recentered(s, p), stats, self.inner(params))

    def variants(self, params: Params) -> tuple[Array | int, tuple[Any, ...]]:
        """As many as the part with most of them has; a part that has fewer takes its last."""
        found = self._parts_only(self._each(lambda part, p: _Forms(*part.variants(p)), self.inner(params)))
        each = jax.tree.leaves(found, is_leaf=_is_forms)

        def chosen(i: int) -> Any:
            return self.with_parts(jax.tree.map(lambda f: f.variants[min(i, len(f.variants) - 1)], found, is_leaf=_is_forms))

        n_forms = max(len(f.variants) for f in each)
        return jnp.stack([jnp.asarray(f.which) for f in each]).max(), tuple(map(chosen, range(n_forms)))

    def own_pseudo_stats(self, params: Params) -> dict[str, Array] | None:
        """Pseudo-statistics of the natural leaves that are no part's, or None."""
        del params
        return None

    def pseudo_stats(self, params: Params) -> PyTree | None:
        own = self.own_pseudo_stats(params)
        found = self._parts_only(self._each(lambda part, p: _Maybe(part.pseudo_stats(p)), self.inner(params)))
        if own is None and all(x.tree is None for x in jax.tree.leaves(found, is_leaf=_is_maybe)):
            return None
        zero = jax.tree.map(jnp.zeros_like, self.natural(params))
        fill = lambda x, z: z if x.tree is None else x.tree  # noqa: E731
        if isinstance(found, dict):
            return {**zero, **(own or {}), **{name: fill(x, zero[name]) for name, x in found.items()}}
        return jax.tree.map(fill, found, zero, is_leaf=_is_maybe)

    def at_floor(self, params: Params) -> PyTree:
        found = self._each(lambda part, p: part.at_floor(p), self.inner(params))
        return {**super().at_floor(params), **self._parts_only(found)} if isinstance(self.parts, dict) else self.outer(found)

    def prepared(self, data: PyTree) -> Any:
        return self.with_parts(jax.tree.map(lambda part: part.prepared(data), self.parts, is_leaf=_is_family))

    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> Any:
        parts = self._all()
        return parts[0].coordinates(data, xp, present) if len(parts) == 1 else None

    def rescaled(self, affine: Any) -> Any:
        return self.with_parts(jax.tree.map(lambda part: part.rescaled(affine), self.parts, is_leaf=_is_family))

    def rescale_params(self, params: Params, affine: Any) -> Params:
        return self.outer(self._each(lambda part, p: part.rescale_params(p, affine), self.inner(params)))


class _Forms:
    """What `variants` gave, as a leaf."""

    def __init__(self, which: Any, variants: tuple[Any, ...]) -> None:
        self.which, self.variants = which, variants


class _Maybe:
    """A tree or None, as a leaf."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree


def _is_family(x: Any) -> bool:
    return isinstance(x, Family)


def _is_forms(x: Any) -> bool:
    return isinstance(x, _Forms)


def _is_maybe(x: Any) -> bool:
    return isinstance(x, _Maybe)
