"""Zeros and ones, one column or several that are independent given the component."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_rows, floating, vector_or_matrix
from jaxem.families.base import Family, columns
from jaxem.families.categorical import finite_log
from jaxem.numerics.linalg import PRECISION
from jaxem.priors import Dirichlet
from jaxem.pytree import PyTree, struct
from jaxem.types import Params


@struct
class Bernoulli(Family):
    """Bernoulli density; parameter `probs` of a one, (K,) for data (N,), (K, D) for data (N, D).

    Where all data of a component agree the likelihood has its supremum at 0 or 1; the estimate is then the
    number next to it that the dtype has inside (0, 1), so that it can be an `init` and has a finite logit.

    Attributes:
        prior: Dirichlet prior on the probabilities of a zero and a one, one concentration or two; or None.
    """

    prior: Dirichlet | None = None

    absent: ClassVar[float] = -1

    @property
    def constraints(self) -> dict[str, Any]:
        return {"probs": sets.UnitInterval()}

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log_one` (t = x) and `log_zero` (t = 1 - x)."""
        probs = params["probs"]
        return {"log_one": finite_log(probs), "log_zero": finite_log(1 - probs)}

    def scores(self, natural: PyTree, data: Array) -> Array:
        x = columns(data)
        k = natural["log_one"].shape[0]
        weights = jnp.concatenate([natural["log_one"].reshape(k, -1), natural["log_zero"].reshape(k, -1)], 1)
        return jnp.matmul(weights, jnp.concatenate([x, 1 - x]), precision=PRECISION)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative frequencies, off 0 and 1; a component without data keeps its probabilities."""
        ones, zeros = jnp.maximum(stats["log_one"], 0), jnp.maximum(stats["log_zero"], 0)
        total = ones + zeros
        limits = jnp.finfo(total.dtype)
        probs = jnp.clip(ones / jnp.where(total > 0, total, 1), limits.tiny, 1 - limits.eps / 2)
        return {"probs": jnp.where(total > 0, probs, params["probs"])}

    def pseudo_stats(self, template: Params) -> PyTree | None:
        if self.prior is None:
            return None
        like = template["probs"]
        pair = self.prior.pseudo_counts(jnp.zeros((2,), like.dtype))
        return {"log_one": jnp.broadcast_to(pair[1], like.shape), "log_zero": jnp.broadcast_to(pair[0], like.shape)}

    def template(self, data: Array, n_components: int) -> Params:
        return {"probs": jnp.full((n_components, *data.shape[1:]), 0.5, data.dtype)}

    def validate(self, data: Any) -> Any:
        array = vector_or_matrix(data)
        check_rows(array, (array == 0) | (array == 1), "0 or 1")
        return floating(array, "data")

    def features(self, data: Array) -> Array:
        return data.reshape(data.shape[0], -1)

    def n_free_params(self, n_components: int, data: Array) -> int:
        return n_components * int(np.prod(data.shape[1:], dtype=int))

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        probs = params["probs"][component]
        return jax.random.bernoulli(key, probs).astype(probs.dtype)
