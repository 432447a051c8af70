"""Counts that superpose hidden Poisson sources: y ~ Poisson(sum of the sources' means + background)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.numerics.blocks import by_row
from jaxem.numerics.special import poisson_log_density


def log_partition(counts: Array, mean: Array, total: Array) -> Array:
    """(n,) log-probability of the counts with the hidden allocation to sources summed out.

    The numerator prod mean^y and the normaliser exp(-total) are arguments of their own: their gradients
    are the expected counts of the sources and their exposures.

    Args:
        counts: (n, ...) y.
        mean: (n, ...) expected counts, background included.
        total: (n,) sum of the expected counts.
    """
    # A bin without counts contributes nothing, even where its mean is zero; counts without a mean are impossible.
    seen = counts > 0
    possible = ~seen | (mean > 0)
    positive = jnp.where(seen & possible, mean, 1)
    held = jax.lax.stop_gradient
    # Bin by bin nothing cancels in the value; the derivatives are those of y log(mean).
    log_mean = jnp.log(positive)
    terms = held(poisson_log_density(counts, jnp.where(seen, positive, mean))) + counts * (log_mean - held(log_mean))
    sums = by_row(jnp.where(possible, terms, -jnp.inf)).sum(1)
    # A `total` that agrees with the means to rounding gives only its derivatives.
    excess = total - by_row(held(mean)).sum(1)
    agrees = jnp.abs(excess) <= 100 * jnp.finfo(total.dtype).eps * total
    return sums - jnp.where(agrees, excess - held(excess), excess)
