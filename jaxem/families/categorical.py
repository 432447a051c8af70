"""Categories, one column or several that are independent given the component (latent classes)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_positive_int, check_rows, vector_or_matrix
from jaxem.families.base import Family
from jaxem.numerics.linalg import PRECISION
from jaxem.priors import Dirichlet
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params

#: log 0 as a finite number whose exponential is exactly zero: it can pass through a matrix product.
LOG_ZERO = -1e9


def finite_log(probs: Array) -> Array:
    """Logarithm, `LOG_ZERO` of zero."""
    return jnp.where(probs > 0, jnp.log(jnp.where(probs > 0, probs, 1)), LOG_ZERO)


def with_impossible(scores: Array) -> Array:
    """Sums of finite logarithms, minus infinity where one of zero entered."""
    return jnp.where(scores > LOG_ZERO / 2, scores, -jnp.inf)


@struct
class Categorical(Family):
    """Categorical density; parameter `probs` (K, V) for data (N,), (K, D, V) for data (N, D) of codes 0..V-1.

    Attributes:
        n_categories: V.
        prior: Dirichlet prior on the probabilities, or None.
        missing: "marginal" where codes may be -1 or NaN: not seen, and summed out.
    """

    n_categories: int = static()
    prior: Dirichlet | None = None
    missing: str | None = static(default=None)

    absent: ClassVar[float] = -1

    @property
    def constraints(self) -> dict[str, Any]:
        return {"probs": sets.Simplex()}

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaf `log_probs`: t is the one-hot code."""
        return {"log_probs": finite_log(params["probs"])}

    def scores(self, natural: PyTree, data: Array) -> Array:
        weights = natural["log_probs"]
        codes = data.reshape(data.shape[0], -1).T
        one_hot = (codes[:, None, :] == jnp.arange(self.n_categories)[:, None]).astype(weights.dtype)
        flat = one_hot.reshape(-1, data.shape[0])
        return with_impossible(jnp.matmul(weights.reshape(weights.shape[0], -1), flat, precision=PRECISION))

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative frequencies; a component without data keeps its probabilities."""
        counts = jnp.maximum(stats["log_probs"], 0)
        total = counts.sum(-1, keepdims=True)
        return {"probs": jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), params["probs"])}

    def pseudo_stats(self, template: Params) -> PyTree | None:
        return None if self.prior is None else {"log_probs": self.prior.pseudo_counts(template["probs"])}

    def template(self, data: Array, n_components: int) -> Params:
        shape = (n_components, *data.shape[1:], self.n_categories)
        return {"probs": jnp.full(shape, 1 / self.n_categories, jnp.zeros(()).dtype)}

    def validate(self, data: Any) -> Any:
        check_positive_int(self.n_categories, "n_categories")
        array = vector_or_matrix(data)
        wanted, least = f"codes 0..{self.n_categories - 1}", 0
        if self.missing == "marginal":
            wanted, least = f"{wanted}, or -1 where missing", -1
            array = np.where(np.isnan(array), -1, array)
        valid = np.isfinite(array) & (array >= least) & (array < self.n_categories) & (array == np.floor(array))
        check_rows(array, valid, wanted)
        return array.astype(np.int32)

    def features(self, data: Array) -> Array:
        one_hot = jax.nn.one_hot(data, self.n_categories)
        return one_hot.reshape(data.shape[0], -1)

    def n_free_params(self, n_components: int, data: Array) -> int:
        return n_components * int(np.prod(data.shape[1:], dtype=int)) * (self.n_categories - 1)

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        probs = params["probs"][component]
        return jax.random.categorical(key, jnp.where(probs > 0, jnp.log(probs), -jnp.inf)).astype(jnp.int32)
