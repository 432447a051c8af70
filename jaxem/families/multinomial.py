"""Rows of counts over categories, given their totals."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln

from jaxem import constraints as sets
from jaxem.data.validation import check_positive_int, matrix
from jaxem.families.base import Family
from jaxem.families.categorical import finite_log, with_impossible
from jaxem.families.poisson import validate_counts
from jaxem.numerics.linalg import PRECISION
from jaxem.priors import Dirichlet
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


@struct
class Multinomial(Family):
    """Multinomial density of counts (N, V) given each row's total; parameter `probs` (K, V).

    Attributes:
        prior: Dirichlet prior on the probabilities, or None.
        n_trials: total of a sampled row; data may have any.
    """

    prior: Dirichlet | None = None
    n_trials: int = static(default=1)

    absent: ClassVar[float] = -1

    @property
    def constraints(self) -> dict[str, Any]:
        return {"probs": sets.Simplex()}

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaf `log_probs`: t is the row of counts."""
        return {"log_probs": finite_log(params["probs"])}

    def scores(self, natural: PyTree, data: Array) -> Array:
        x = data.T
        coefficient = gammaln(x.sum(0) + 1) - gammaln(x + 1).sum(0)
        return with_impossible(jnp.matmul(natural["log_probs"], x, precision=PRECISION)) + coefficient

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative frequencies; a component without data keeps its probabilities."""
        counts = jnp.maximum(stats["log_probs"], 0)
        total = counts.sum(-1, keepdims=True)
        return {"probs": jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), params["probs"])}

    def pseudo_stats(self, template: Params) -> PyTree | None:
        return None if self.prior is None else {"log_probs": self.prior.pseudo_counts(template["probs"])}

    def template(self, data: Array, n_components: int) -> Params:
        v = data.shape[1]
        return {"probs": jnp.full((n_components, v), 1 / v, data.dtype)}

    def validate(self, data: Any) -> Any:
        check_positive_int(self.n_trials, "n_trials")
        return validate_counts(matrix(data))

    def features(self, data: Array) -> Array:
        """Relative frequencies; a row without counts lies at zero."""
        return super().features(data / jnp.maximum(data.sum(1, keepdims=True), 1))

    def n_free_params(self, n_components: int, data: Array) -> int:
        return n_components * (data.shape[1] - 1)

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        probs = params["probs"][component]
        scores = jnp.where(probs > 0, jnp.log(probs), -jnp.inf)

        def add(counts: Array, key: Array) -> tuple[Array, None]:
            return counts + jax.nn.one_hot(jax.random.categorical(key, scores), probs.shape[-1], dtype=probs.dtype), None

        return jax.lax.scan(add, jnp.zeros_like(probs), jax.random.split(key, self.n_trials))[0]
