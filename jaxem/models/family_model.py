"""What models over a family share: they hand to it whatever concerns the density of a datum given its latent value."""

from __future__ import annotations

from typing import Any

from jax import Array

from jaxem.families.composite import Composite
from jaxem.model import Model
from jaxem.pytree import PyTree
from jaxem.types import Params, Rows


class FamilyModel(Composite, Model):
    """A latent structure over a family, all of whose own parameters have a closed M-step."""

    @property
    def without_closed_form(self) -> dict[str, bool]:
        return self.joined(dict.fromkeys(self.own_constraints, False), [part.m_step is None for part in self.parts])

    @property
    def scores(self) -> Any:
        """Rows of log-densities, where the family has no finite statistics."""
        return None if self.parts[0].log_density is None else self.density_scores

    def density_scores(self, params: Params, data: PyTree) -> Array:
        """(n, K) log-densities of a family without finite statistics."""
        return self.parts[0].log_density(params[self.part], data)

    def rows(self, params: Params, data: PyTree) -> Rows:
        """What `log_marginal` reads besides the data."""
        return Rows(scores=self.scores(params, data) if self.scores else None)

    def family_m_step(self, stats: PyTree, params: Params) -> Params:
        """The family's parameters by its closed form; as they are where it has none."""
        (family,), own = self.parts, params[self.part]
        return own if family.m_step is None else family.m_step(stats[self.part], own)
