"""What models over a family share: they hand to it whatever concerns the density of a datum given its latent value."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.families.base import Family
from jaxem.types import Model, Params, Rows

PyTree = Any


class FamilyModel(Model):
    """A latent structure over a family. Parameters and natural parameters hold the family's under one name."""

    #: Name of the family's entry in parameters and natural parameters.
    part: ClassVar[str]
    #: Name of the dataclass field that holds the family.
    family_field: ClassVar[str]
    #: Constraints of the other parameters, all of which have a closed M-step.
    latent_constraints: ClassVar[dict[str, Any]]

    @property
    def _family(self) -> Family:
        return getattr(self, self.family_field)

    def _with(self, family: Family) -> Any:
        return dataclasses.replace(self, **{self.family_field: family})  # type: ignore[type-var]

    @property
    def constraints(self) -> dict[str, Any]:
        return {**self.latent_constraints, self.part: self._family.constraints}

    @property
    def ascended(self) -> dict[str, bool]:
        return {**dict.fromkeys(self.latent_constraints, False), self.part: self._family.m_step is None}

    @property
    def m_step_is_maximum(self) -> bool:
        return self._family.m_step is not None and self._family.m_step_is_maximum

    @property
    def missing(self) -> str | None:
        return self._family.missing

    @property
    def scores(self) -> Any:
        """Rows of log-densities, where the family has no finite statistics."""
        return None if self._family.log_density is None else self.density_scores

    def density_scores(self, params: Params, data: PyTree) -> Array:
        """(n, K) log-densities of a family without finite statistics."""
        return self._family.log_density(params[self.part], data)

    def rows(self, params: Params, data: PyTree) -> Rows:
        """What `log_marginal` reads besides the data."""
        return Rows(scores=self.scores(params, data) if self.scores else None)

    def at(self, params: Params) -> Any:
        return self._with(self._family.at(params[self.part]))

    def moved(self, stats: PyTree, params: Params) -> PyTree:
        return {**stats, self.part: self._family.moved(stats[self.part], params[self.part])}

    def forms(self, params: Params) -> tuple[Array | int, tuple[Any, ...]]:
        which, families = self._family.forms(params[self.part])
        return which, tuple(self._with(family) for family in families)

    def pack(self, natural: PyTree) -> PyTree:
        return {**natural, self.part: self._family.pack(natural[self.part])}

    def latent_pseudo_stats(self, params: Params) -> dict[str, Array] | None:
        """Pseudo-statistics of the natural leaves that are not the family's, or None."""
        del params
        return None

    def pseudo_stats(self, params: Params) -> PyTree | None:
        own, latent = self._family.pseudo_stats(params[self.part]), self.latent_pseudo_stats(params)
        if own is None and latent is None:
            return None
        stats = jax.tree.map(jnp.zeros_like, self.natural(params)) | (latent or {})
        return stats if own is None else {**stats, self.part: own}

    def degenerate(self, params: Params) -> Array | bool:
        return self._family.degenerate(params[self.part])

    def at_floor(self, params: Params) -> PyTree:
        latent = {name: jnp.zeros(params[name].shape, bool) for name in self.latent_constraints}
        return {**latent, self.part: self._family.at_floor(params[self.part])}

    def coordinates(self, data: PyTree, xp: Any, present: Any = None) -> Any:
        return self._family.coordinates(data, xp, present)

    def log_volume(self, data: PyTree, affine: Any) -> Any:
        return self._family.log_volume(data, affine)

    def prepared(self, data: PyTree) -> Any:
        return self._with(self._family.prepared(data))

    def changed(self, affine: Any) -> Any:
        """This model, priors included, in new coordinates."""
        return self._with(self._family.changed(affine))

    def change_params(self, params: Params, affine: Any) -> Params:
        """Parameters in new coordinates."""
        return {**params, self.part: self._family.change_params(params[self.part], affine)}

    def family_m_step(self, stats: PyTree, params: Params) -> Params:
        """The family's parameters by its closed form; as they are where it has none."""
        own = params[self.part]
        return own if self._family.m_step is None else self._family.m_step(stats[self.part], own)
