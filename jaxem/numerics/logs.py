"""Arithmetic that stays finite at structural zeros.

`log 0`, `0 * -inf` and the gradients of both are NaN in plain JAX; every place where a probability
may be exactly zero goes through one of these helpers instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jax import Array


def safe_log(x: Array) -> Array:
    """`log x`, with `-inf` and a zero gradient at zero."""
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1)), -jnp.inf)


def divided(x: Array, by: Array) -> Array:
    """`x / by`, and `x` itself where `by` is not positive: counts of nothing stay zero."""
    return x / jnp.where(by > 0, by, 1)


def lse(scores: Array, axis: int = 0) -> Array:
    """`log sum exp` along `axis`; an all `-inf` slice gives `-inf` and a zero gradient."""
    top = jax.lax.stop_gradient(scores.max(axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.exp(scores - top).sum(axis)
    return safe_log(total) + top.squeeze(axis)


#: Set while latent values are maximised over; a list that notes each use.
_HARD: ContextVar[list[bool] | None] = ContextVar("jaxem_hard", default=None)


@contextmanager
def hard_latents() -> Iterator[list[bool]]:
    """While this lasts, functions traced take the most probable latent values instead of summing them out.

    Yields a list that is empty as long as none was asked for.
    """
    used: list[bool] = []
    token = _HARD.set(used)
    try:
        yield used
    finally:
        _HARD.reset(token)


def latents_are_hard() -> bool:
    """Whether latent values are to be maximised over; whoever asks obeys."""
    used = _HARD.get()
    if used is not None:
        used.append(True)
    return used is not None


def sum_out(scores: Array, axis: int = 0) -> Array:
    """Log-sum-exp over latent values along `axis`, or their maximum under `hard_latents`."""
    return scores.max(axis) if latents_are_hard() else lse(scores, axis)


def softmax(scores: Array, axis: int = 0) -> Array:
    """`exp(scores - lse(scores))`; an all `-inf` slice gives zeros."""
    top = scores.max(axis, keepdims=True)
    mass = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0))
    total = mass.sum(axis, keepdims=True)
    return mass / jnp.where(total > 0, total, 1)
