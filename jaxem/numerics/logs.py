"""Arithmetic that stays finite at structural zeros.

`log 0`, `0 * -inf` and the gradients of both are NaN in plain JAX; every place where a probability
may be exactly zero goes through one of these helpers instead.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def safe_log(x: Array) -> Array:
    """`log x`, with `-inf` and a zero gradient at zero; of NaN it is NaN, not `-inf`."""
    zero = x <= 0
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1, x)))


def divided(x: Array, by: Array) -> Array:
    """`x / by`, and `x` itself where `by` is not positive: counts of nothing stay zero."""
    return x / jnp.where(by > 0, by, 1)


@jax.custom_jvp
def ratio(x: Array, by: Array) -> Array:
    """`divided`, whose derivative does not square `by`: likelihoods below 1e-154 have squares of zero."""
    return divided(x, by)


@ratio.defjvp
def _(primals, tangents):
    by = primals[1]
    value = divided(*primals)
    return value, divided(tangents[0] - value * jnp.where(by > 0, tangents[1], 0), by)


def lse(scores: Array, axis: int = 0) -> Array:
    """`log sum exp` along `axis`; an all `-inf` slice gives `-inf` and a zero gradient."""
    top = jax.lax.stop_gradient(scores.max(axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.exp(scores - top).sum(axis)
    return safe_log(total) + top.squeeze(axis)


def sum_out(scores: Array, axis: int = 0, hard: bool = False) -> Array:
    """Log-sum-exp over latent values along `axis`, or their maximum where assignments are `hard`."""
    if not hard:
        return lse(scores, axis)
    # Taken by its place: a maximum's own gradient asks which score equals it, and a compiler that computes scores twice
    # may round them differently, so that none does.
    best = jnp.expand_dims(scores.argmax(axis), axis)
    return jnp.take_along_axis(scores, best, axis).squeeze(axis)


def softmax(scores: Array, axis: int = 0) -> Array:
    """`exp(scores - lse(scores))`; NaN where nothing is possible: a slice that is all `-inf`, or holds NaN."""
    mass = jnp.exp(scores - scores.max(axis, keepdims=True))
    return mass / mass.sum(axis, keepdims=True)


def most_probable(probs: Array, axis: int = -1) -> Array:
    """Place of the greatest entry along `axis`; -1 where it holds NaN."""
    return jnp.where(jnp.isnan(probs).any(axis), -1, probs.argmax(axis))
