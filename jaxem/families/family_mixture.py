"""A mixture as a component: M densities of one family for each of K components or states."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_positive_int
from jaxem.families.base import Family
from jaxem.families.composite import Composite
from jaxem.families.gaussian import Gaussian
from jaxem.numerics.logs import divided, safe_log, sum_out
from jaxem.priors import Dirichlet
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


@struct
class FamilyMixture(Composite, Family):
    """p(x | k) = sum over m of weights[k, m] family(x | parts[k, m]).

    Parameters: `weights` (K, M) and `parts`, the family's parameters with leaves that lead with K * M, those of
    component k at k * M .. k * M + M - 1.

    Attributes:
        n_parts: M.
        family: density of a part.
        prior: Dirichlet prior on the weights, or None.
    """

    n_parts: int = static()
    family: Family = Gaussian()
    prior: Dirichlet | None = None

    part: ClassVar[str] = "parts"
    family_field: ClassVar[str] = "family"
    own_constraints: ClassVar[dict[str, Any]] = {"weights": sets.Simplex()}

    def _m_step(self, stats: PyTree, params: Params) -> Params:
        counts = jnp.maximum(stats["log_weights"], 0)
        total = counts.sum(-1, keepdims=True)
        weights = jnp.where(total > 0, divided(counts, total), params["weights"])
        return {**super()._m_step(stats, params), "weights": weights}

    def natural(self, params: Params) -> PyTree:
        """Leaves `log_weights` (K, M) and `parts`."""
        return {"log_weights": safe_log(params["weights"]), "parts": self.family.natural(params["parts"])}

    def scores(self, natural: PyTree, data: PyTree) -> Array:
        return self._over_parts(natural, self.family.scores(natural["parts"], data), hard=False)

    def hard_scores(self, natural: PyTree, data: PyTree) -> Array:
        return self._over_parts(natural, self.family.hard_scores(natural["parts"], data), hard=True)

    def _over_parts(self, natural: PyTree, scores: Array, hard: bool) -> Array:
        weights = natural["log_weights"]
        return sum_out(scores.reshape(*weights.shape, -1) + weights[..., None], 1, hard)

    def start(self, stats: PyTree, template: Params) -> Params:
        raise ValueError("init: labels tell nothing of the parts of a FamilyMixture; give parameters")

    def own_start(self, mixture: Any, strategy: Any, key: Array | None, data: PyTree, weight: Array) -> Params:
        """From a mixture of all K * M parts.

        Raises:
            ValueError: for a start without chance.
        """
        if key is None or not strategy.needs_key:
            given = "a start without a key" if strategy.needs_key else f"init={type(strategy).__name__}"
            raise ValueError(
                f"{given} tells nothing of the parts of a FamilyMixture; draw a start by a key, or give parameters"
            )
        fine = dataclasses.replace(mixture, n_components=mixture.n_components * self.n_parts, family=self.family)
        found = fine.initialize_by(strategy, key, data, weight)
        weights = found["weights"].reshape(-1, self.n_parts)
        total = weights.sum(-1, keepdims=True)
        within = jnp.where(total > 0, divided(weights, total), 1 / self.n_parts)
        return {"weights": total[:, 0], "components": {"weights": within, "parts": found["components"]}}

    def own_pseudo_stats(self, params: Params) -> dict[str, Array] | None:
        return None if self.prior is None else {"log_weights": self.prior.pseudo_counts(params["weights"])}

    def template(self, data: PyTree, n_components: int) -> Params:
        parts = self.family.template(data, n_components * self.n_parts)
        floats = [x.dtype for x in jax.tree.leaves(parts)]
        return {"weights": jnp.full((n_components, self.n_parts), 1 / self.n_parts, floats[0]), "parts": parts}

    def validate(self, data: Any) -> Any:
        check_positive_int(self.n_parts, "n_parts")
        return self.family.validate(data)

    def check_fit(self, data: Any) -> None:
        self.family.check_fit(data)

    def features(self, data: PyTree) -> Array:
        return self.family.features(data)

    def n_free_params(self, n_components: int, data: PyTree) -> int:
        return n_components * (self.n_parts - 1) + self.family.n_free_params(n_components * self.n_parts, data)

    def sample(self, key: Array, params: Params, component: Array) -> PyTree:
        what, part = self._parts(key, params, component)
        return self.family.sample(what, params["parts"], part)

    def sample_like(self, key: Array, params: Params, component: Array, data: PyTree) -> PyTree:
        what, part = self._parts(key, params, component)
        return self.family.sample_like(what, params["parts"], part, data)

    def _parts(self, key: Array, params: Params, component: Array) -> tuple[Array, Array]:
        """A key for what is drawn, and (n,) the parts that it is drawn from."""
        which, what = jax.random.split(key)
        part = jax.random.categorical(which, safe_log(params["weights"])[component])
        return what, component * self.n_parts + part

    @property
    def absent(self) -> float:  # type: ignore[override]
        return self.family.absent
