"""Counts that superpose hidden Poisson sources: y ~ Poisson(sum of the sources' means + background)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln

from jaxem.numerics.blocks import by_row
from jaxem.numerics.logs import safe_log


def log_partition(counts: Array, mean: Array, total: Array) -> Array:
    """(n,) log-probability of the counts with the hidden allocation to sources summed out.

    The numerator prod mean^y and the normaliser exp(-total) are arguments of their own: their gradients
    are the expected counts of the sources and their exposures.

    Args:
        counts: (n, ...) y.
        mean: (n, ...) expected counts, background included.
        total: (n,) sum of the expected counts.
    """
    # A bin without counts contributes nothing, even where its mean is zero.
    terms = jnp.where(counts > 0, counts * safe_log(jnp.where(counts > 0, mean, 1)), 0) - gammaln(counts + 1)
    return by_row(terms).sum(1) - total
