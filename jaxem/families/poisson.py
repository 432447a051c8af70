"""Poisson counts, one column or several that are independent given the component."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln

from jaxem import constraints as sets
from jaxem.data.validation import check_finite, check_rows, floating, vector_or_matrix
from jaxem.families.base import Family, columns
from jaxem.numerics.linalg import PRECISION
from jaxem.priors import GammaPrior
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


def validate_counts(data: Any) -> np.ndarray:
    """(N,) or (N, D) non-negative integers, as floats."""
    array = vector_or_matrix(data)
    check_finite(array, "data")
    check_rows(array, (array >= 0) & (array == np.floor(array)), "counts (non-negative integers)")
    return floating(array, "data")


@struct
class Poisson(Family):
    """Poisson density; parameter `rate` (K,) for data (N,), (K, D) for data (N, D).

    Attributes:
        prior: gamma prior on the rates, or None.
        zero_inflated: whether the first component is a point mass at zero: its rate is zero and stays it.
    """

    prior: GammaPrior | None = None
    zero_inflated: bool = static(default=False)

    absent: ClassVar[float] = -1

    @property
    def constraints(self) -> dict[str, Any]:
        return {"rate": sets.NonNegative() if self.zero_inflated else sets.Positive()}

    def _inflated(self, rate: Array) -> Array:
        return rate.at[0].set(0) if self.zero_inflated else rate

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log_rate` (t = x) and `exposure` = -rate (t = 1)."""
        rate = params["rate"]
        # A rate of zero keeps a finite logarithm: 0 * -inf would poison the matrix product.
        return {"log_rate": jnp.log(jnp.maximum(rate, jnp.finfo(rate.dtype).tiny)), "exposure": -rate}

    def scores(self, natural: PyTree, data: Array) -> Array:
        x = columns(data)
        k = natural["log_rate"].shape[0]
        linear = jnp.matmul(natural["log_rate"].reshape(k, -1), x, precision=PRECISION)
        return linear + natural["exposure"].reshape(k, -1).sum(1)[:, None] - gammaln(x + 1).sum(0)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Weighted mean count; a component without data keeps its rate."""
        exposure = stats["exposure"]
        rate = stats["log_rate"] / jnp.where(exposure > 0, exposure, 1)
        return {"rate": self._inflated(jnp.where(exposure > 0, jnp.maximum(rate, 0), params["rate"]))}

    def pseudo_stats(self, template: Params) -> PyTree | None:
        if self.prior is None:
            return None
        like = template["rate"]
        fill = lambda value: jnp.broadcast_to(jnp.asarray(value, like.dtype), like.shape)  # noqa: E731
        return {"log_rate": fill(self.prior.shape) - 1, "exposure": fill(self.prior.inverse_scale)}

    def template(self, data: Array, n_components: int) -> Params:
        return {"rate": self._inflated(jnp.ones((n_components, *data.shape[1:]), data.dtype))}

    def validate(self, data: Any) -> Any:
        return validate_counts(data)

    def n_free_params(self, n_components: int, data: Array) -> int:
        return (n_components - self.zero_inflated) * int(np.prod(data.shape[1:], dtype=int))

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        rate = params["rate"][component]
        return jax.random.poisson(key, rate).astype(rate.dtype)
