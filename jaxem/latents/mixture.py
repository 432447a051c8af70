"""One discrete latent variable: log-partition, posterior and mode from local scores (K, n)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.numerics.logs import safe_log, softmax, sum_out


def log_partition(scores: Array, *, hard: bool = False) -> Array:
    """(n,) log sum_k exp scores[k], whose gradient is the posterior; or the greatest score where assignments are `hard`."""
    return sum_out(scores, 0, hard)


def posterior(scores: Array) -> Array:
    """(K, n) p(k | x_n); NaN for what has probability zero."""
    return softmax(scores, 0)


def mode(scores: Array) -> Array:
    """(n,) most probable component; -1 for what has probability zero."""
    return jnp.where(jnp.isfinite(scores.max(0)), scores.argmax(0), -1)


def sample(key: Array, scores: Array) -> Array:
    """(n,) components drawn from the posterior."""
    return jax.random.categorical(key, scores, axis=0)


def label_bias(labels: Array, n_components: int, dtype: Any) -> Array:
    """(K, n) what labels add to local scores.

    Args:
        labels: (n,) integers, -1 for unknown: -inf for the excluded components; or (n, K) floats, added as they are.
        n_components: K.
        dtype: of the scores.
    """
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return labels.T.astype(dtype)
    allowed = (labels < 0) | (labels == jnp.arange(n_components, dtype=labels.dtype)[:, None])
    return safe_log(allowed.astype(dtype))
