"""A Gaussian random walk observed with noise: the log-partition by the Kalman filter."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array


def log_partition(series: Array, level: Array, observation: Array, initial_variance: float | Array) -> Array:
    """(n,) log-likelihood of local levels (Harvey 1989, section 4.1; prediction-error decomposition).

    Args:
        series: (n, T) observations.
        level: variance of a step of the random walk.
        observation: variance of the noise.
        initial_variance: variance of the first level, whose mean is zero.
    """
    half_log_two_pi = math.log(2 * math.pi) / 2

    def step(carry, y):
        mean, variance = carry  # of the level, given what came before
        spread = variance + observation
        surprise = y - mean
        term = -half_log_two_pi - (jnp.log(spread) + surprise**2 / spread) / 2
        gain = variance / spread
        # variance - gain * variance cancels where the noise is small; gain * observation does not.
        return (mean + gain * surprise, gain * observation + level), term

    first = jnp.broadcast_to(jnp.asarray(initial_variance, series.dtype), series.shape[:1])
    _, terms = jax.lax.scan(step, (jnp.zeros_like(first), first), series.T)
    return terms.sum(0)
