"""Gamma densities: positive data, no closed M-step, so Optax ascends q from the statistics."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln

from jaxem import constraints as sets
from jaxem.data.validation import check_finite, check_rows, floating, vector_or_matrix
from jaxem.families.base import Family, columns
from jaxem.numerics.floors import NEAR, known_floor, least_variance
from jaxem.numerics.linalg import PRECISION
from jaxem.pytree import PyTree, struct
from jaxem.types import Params


@struct
class Gamma(Family):
    """Gamma density; parameters `shape` and `rate` (1 / units of x), (K,) for data (N,), (K, D) for (N, D).

    Attributes:
        floor: least variance, shape / rate^2, in the squared units of x, a number or one for each column; a component at it
            makes a restart DEGENERATE. None: 1e-8 times the variance of each column.
    """

    floor: float | Array | None = None

    @property
    def constraints(self) -> dict[str, Any]:
        return {"shape": sets.Positive(), "rate": sets.Positive()}

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log` (t = log x), `linear` (t = x) and `normalizer` (t = 1)."""
        shape, rate = self._clipped(params)
        return {"log": shape - 1, "linear": -rate, "normalizer": shape * jnp.log(rate) - gammaln(shape)}

    def _clipped(self, params: Params) -> tuple[Array, Array]:
        """Shape and rate; below the floor those at it of the same mean, so that an ascent gains nothing by going on."""
        shape, rate = params["shape"], params["rate"]
        if self.floor is None:
            return shape, rate
        excess = jnp.maximum(self.floor * rate * rate / shape, 1)
        return shape / excess, rate / excess

    def at_floor(self, params: Params) -> dict[str, Array]:
        """Shapes at which the variance is near its floor, or too small a share of the squared mean for the data's dtype."""
        shape, rate = params["shape"], params["rate"]
        variance, most = shape / (rate * rate), 1 / (4 * NEAR * jnp.finfo(shape.dtype).eps)
        return {**super().at_floor(params), "shape": (variance <= NEAR * known_floor(self.floor)) | (shape >= most)}

    def floored(self, data: Array, weight: Array | None) -> Gamma:
        return self if self.floor is not None else dataclasses.replace(self, floor=least_variance(data, weight))

    def scores(self, natural: PyTree, data: Array) -> Array:
        x = columns(data)
        flat = {name: leaf.reshape(leaf.shape[0], -1) for name, leaf in natural.items()}
        log_part = jnp.matmul(flat["log"], jnp.log(x), precision=PRECISION)
        return log_part + jnp.matmul(flat["linear"], x, precision=PRECISION) + flat["normalizer"].sum(1)[:, None]

    def start(self, stats: PyTree, template: Params) -> Params:
        """Closed-form approximation to the maximum (Minka 2002)."""
        count = jnp.where(stats["normalizer"] > 0, stats["normalizer"], 1)
        mean = stats["linear"] / count
        gap = jnp.maximum(jnp.log(mean) - stats["log"] / count, 1e-6)
        shape = (3 - gap + jnp.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)
        present = stats["normalizer"] > 0
        return {
            "shape": jnp.where(present, shape, template["shape"]),
            "rate": jnp.where(present, shape / mean, template["rate"]),
        }

    def template(self, data: Array, n_components: int) -> Params:
        one = jnp.ones((n_components, *data.shape[1:]), data.dtype)
        return {"shape": one, "rate": one}

    def validate(self, data: Any) -> Any:
        array = vector_or_matrix(data)
        check_finite(array, "data")
        check_rows(array, array > 0, "positive")
        return floating(array, "data", data)

    def features(self, data: Array) -> Array:
        return super().features(jnp.log(data))

    def n_free_params(self, n_components: int, data: Array) -> int:
        return 2 * n_components * int(np.prod(data.shape[1:], dtype=int))

    def sample(self, key: Array, params: Params, component: Array) -> Array:
        shape = params["shape"][component]
        return jax.random.gamma(key, shape, dtype=shape.dtype) / params["rate"][component]
