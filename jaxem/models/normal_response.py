"""Normal responses to inputs as an exponential family, and their least squares."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array

from jaxem.numerics.linalg import PRECISION, least_squares
from jaxem.numerics.logs import divided
from jaxem.pytree import PyTree


def normal_natural(coefficients: Array, variance: Array) -> dict[str, Array]:
    """Natural leaves of y ~ Normal(inputs . coefficients, variance).

    `square` () with t = y^2, `cross` (P,) with t = y inputs, `gram` (P, P) with t = inputs inputs^T, and `log_scale` ()
    with t = 1.
    """
    return {
        "square": -1 / (2 * variance),
        "cross": coefficients / variance,
        "gram": -coefficients[:, None] * coefficients / (2 * variance),
        "log_scale": -(jnp.log(variance) + math.log(2 * math.pi)) / 2,
    }


def normal_m_step(stats: PyTree, variance: Array, floor: float | Array = 0.0) -> tuple[Array, Array]:
    """Coefficients (P,) and variance () that maximise <stats, natural>; without data the variance stays."""
    gram = (stats["gram"] + stats["gram"].T) / 2
    coefficients = least_squares(gram, stats["cross"])
    fit = 2 * coefficients @ stats["cross"] - coefficients @ jnp.matmul(gram, coefficients, precision=PRECISION)
    count = stats["log_scale"]
    new = jnp.maximum(divided(stats["square"] - fit, count), floor + jnp.finfo(count.dtype).tiny)
    return coefficients, jnp.where(count > 0, new, variance)


def normal_recentered(stats: PyTree, shift: Array) -> dict[str, Array]:
    """Statistics of y - inputs . shift (P,) from those of y."""
    cross = stats["cross"] - jnp.matmul((stats["gram"] + stats["gram"].T) / 2, shift, precision=PRECISION)
    return {**stats, "square": stats["square"] - jnp.vdot(shift, stats["cross"] + cross, precision=PRECISION), "cross": cross}
