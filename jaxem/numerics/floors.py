"""The least variance that data imply, below which a density has collapsed on some of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.numerics.logs import divided

#: Least variance where none is given, in units of the data's own.
RELATIVE = 1e-8
#: Factor of its floor at which what an ascent takes there counts as there: it stops where nothing is gained any more.
NEAR = 2.0


def least_variance(x: Array, weight: Array | None = None) -> Array:
    """`RELATIVE` times the variance of x, column by column.

    Where x does not vary it is that share of its mean square, and 1 stands for that of zeros, so that a constant
    column lies at its floor. Never below what rounding makes of a variance.

    Args:
        x: (N,) or (N, D), NaN where an entry is missing.
        weight: (N,), or None for all ones.

    Returns:
        () or (D,).
    """
    there = ~jnp.isnan(x)
    if weight is not None:
        weight = weight.reshape(weight.shape + (1,) * (x.ndim - 1))
        there = there & (weight > 0)
    share = there.astype(x.dtype) if weight is None else jnp.where(there, weight, 0).astype(x.dtype)
    share = divided(share, share.sum(0))
    largest = jnp.max(jnp.where(there, jnp.abs(x), 0), 0)
    x = divided(jnp.where(there, x, 0), largest)  # whose squares neither overflow nor vanish
    square = (share * x * x).sum(0)
    variance = (share * jnp.square(x - (share * x).sum(0))).sum(0)
    rounding = (4 * jnp.finfo(x.dtype).eps) ** 2 * square
    size = jnp.maximum(RELATIVE * jnp.where(variance > rounding, variance, square), rounding)
    return jax.lax.stop_gradient(jnp.where(largest > 0, size * largest * largest, RELATIVE))


def known_floor(floor: Any) -> Any:
    """A floor as a number: zero where it is None and no data have been seen."""
    return 0.0 if floor is None else floor
