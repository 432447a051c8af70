"""Least squares: the equations, and normal responses to inputs as an exponential family."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.numerics import PRECISION, divided

PyTree = Any


def solve(gram: Array, right: Array, present: Array) -> Array:
    """(K, P) solutions of least squares, of least norm where inputs do not vary."""
    scale = jnp.sqrt(jnp.diagonal(gram, axis1=-2, axis2=-1))
    scale = jnp.where(scale > 0, scale, 1)
    values, vectors = jnp.linalg.eigh(gram / (scale[..., :, None] * scale[..., None, :]))
    kept = values > 10 * jnp.finfo(gram.dtype).eps * gram.shape[-1] * values[..., -1:]
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    turned = inverse * jnp.einsum("kpq,kp->kq", vectors, right / scale, precision=PRECISION)
    return jnp.where(present[:, None], jnp.einsum("kpq,kq->kp", vectors, turned, precision=PRECISION) / scale, 0)


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
    coefficients = solve(gram[None], stats["cross"][None], (stats["log_scale"] > 0)[None])[0]
    fit = 2 * coefficients @ stats["cross"] - coefficients @ jnp.matmul(gram, coefficients, precision=PRECISION)
    count = stats["log_scale"]
    new = jnp.maximum(divided(stats["square"] - fit, count), floor + jnp.finfo(count.dtype).tiny)
    return coefficients, jnp.where(count > 0, new, variance)
