"""What models over a family share: they hand to it whatever concerns the density of a datum given its latent value."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jax import Array

from jaxem.families.base import Family
from jaxem.families.composite import Composite
from jaxem.model import Model
from jaxem.pytree import PyTree
from jaxem.types import Params, Rows


class FamilyModel(Composite, Model):
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

    @property
    def parts(self) -> dict[str, Family]:
        return {self.part: self._family}

    def with_parts(self, parts: dict[str, Family]) -> Any:
        return self._with(parts[self.part])

    def _with(self, family: Family) -> Any:
        return dataclasses.replace(self, **{self.family_field: family})  # type: ignore[type-var]

    @property
    def constraints(self) -> dict[str, Any]:
        return {**self.latent_constraints, self.part: self._family.constraints}

    @property
    def without_closed_form(self) -> dict[str, bool]:
        return {**dict.fromkeys(self.latent_constraints, False), self.part: self._family.m_step is None}

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

    def family_m_step(self, stats: PyTree, params: Params) -> Params:
        """The family's parameters by its closed form; as they are where it has none."""
        own = params[self.part]
        return own if self._family.m_step is None else self._family.m_step(stats[self.part], own)
