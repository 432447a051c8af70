"""Poisson counts, one column or several that are independent given the component."""

from __future__ import annotations

import dataclasses
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
from jaxem.numerics.special import log_ratio, poisson_log_density
from jaxem.priors import GammaPrior
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params

#: The least rate that is estimated, in place of the zero of a component that never counts: positive in either dtype.
LEAST = float(np.finfo(np.float32).tiny)


def validate_counts(data: Any) -> np.ndarray:
    """(N,) or (N, D) non-negative integers, as floats."""
    array = vector_or_matrix(data)
    check_finite(array, "data")
    check_rows(array, (array >= 0) & (array == np.floor(array)), "counts (non-negative integers)")
    return floating(array, "data", data)


@struct
class Poisson(Family):
    """Poisson density; parameter `rate` (K,) for data (N,), (K, D) for data (N, D).

    Rates are measured by their mean over the components (`centered`), so that large counts keep their digits.

    Attributes:
        prior: gamma prior on the rates, or None.
        zero_inflated: whether the first component is a point mass at zero: its rate is zero and stays it.
        origin: the rate by which others are measured, () or (D,); set by `centered`.
    """

    prior: GammaPrior | None = None
    zero_inflated: bool = static(default=False)
    origin: Any = None

    absent: ClassVar[float] = -1

    @property
    def constraints(self) -> dict[str, Any]:
        return {"rate": sets.NonNegative() if self.zero_inflated else sets.Positive()}

    def _inflated(self, rate: Array) -> Array:
        return rate.at[0].set(0) if self.zero_inflated else rate

    def centered(self, params: Params) -> Poisson:
        return dataclasses.replace(self, origin=jnp.maximum(params["rate"].mean(0), LEAST))

    def recentered(self, stats: PyTree, params: Params) -> PyTree:
        """As they are: the origin is in the natural parameters alone."""
        del params
        return stats

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log_rate` = log(rate / origin) (t = x) and `exposure` = origin - rate (t = 1).

        With a prior `about` too, of which the data say nothing: it keeps the log-prior the same about any origin.
        """
        rate = params["rate"]
        # A rate of zero keeps a finite logarithm: 0 * -inf would poison the matrix product.
        above = jnp.maximum(rate, LEAST)
        if self.origin is None:
            return {"log_rate": jnp.log(above), "exposure": -rate}
        leaves = {"log_rate": log_ratio(above, self.origin), "exposure": self.origin - rate}
        if self.prior is not None:
            counts, exposure = self._pseudo(rate)
            leaves["about"] = counts * jnp.log(self.origin) - exposure * self.origin
        return leaves

    def scores(self, natural: PyTree, data: Array) -> Array:
        x = columns(data)
        k = natural["log_rate"].shape[0]
        linear = jnp.matmul(natural["log_rate"].reshape(k, -1), x, precision=PRECISION)
        base = -gammaln(x + 1) if self.origin is None else poisson_log_density(x, self.origin.reshape(-1, 1))
        return linear + natural["exposure"].reshape(k, -1).sum(1)[:, None] + base.sum(0)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Weighted mean count, at least `LEAST`; a component without data keeps its rate."""
        exposure = stats["exposure"]
        rate = stats["log_rate"] / jnp.where(exposure > 0, exposure, 1)
        return {"rate": self._inflated(jnp.where(exposure > 0, jnp.maximum(rate, LEAST), params["rate"]))}

    def _pseudo(self, like: Array) -> tuple[Array, Array]:
        """Counts and exposure for which the prior stands, shaped like rates."""
        assert self.prior is not None
        fill = lambda value: jnp.broadcast_to(jnp.asarray(value, like.dtype), like.shape)  # noqa: E731
        return fill(self.prior.shape) - 1, fill(self.prior.inverse_scale)

    def pseudo_stats(self, template: Params) -> PyTree | None:
        if self.prior is None:
            return None
        counts, exposure = self._pseudo(template["rate"])
        of_data = {"log_rate": counts, "exposure": exposure}
        return of_data if self.origin is None else {**of_data, "about": jnp.ones_like(counts)}

    def template(self, data: Array, n_components: int) -> Params:
        return {"rate": self._inflated(jnp.ones((n_components, *data.shape[1:]), data.dtype))}

    def validate(self, data: Any) -> Any:
        return validate_counts(data)

    def n_free_params(self, n_components: int, data: Array) -> int:
        return (n_components - self.zero_inflated) * int(np.prod(data.shape[1:], dtype=int))

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        rate = params["rate"][component]
        return jax.random.poisson(key, rate).astype(rate.dtype)
