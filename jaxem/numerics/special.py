"""Special functions without cancellation: gamma densities, normal tails."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln, log_ndtr

from jaxem.numerics.roots import root_of_decreasing


def stirling_rest(x: Array) -> Array:
    """gammaln(x) - (x - 1/2) log x + x for x > 0, about log(2 pi) / 2: what large x leaves of a logarithm of gamma.

    By Stirling's series for large x, so that neither it nor its derivative is a difference of large numbers.
    """
    large = x > 16
    small = jnp.where(large, 1, x)
    inverse = 1 / jnp.where(large, x, 16)
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188))))
    direct = gammaln(small) - (small - 0.5) * jnp.log(small) + small
    return jnp.where(large, series + math.log(2 * math.pi) / 2, direct)


def log_ratio(a: Array, b: Array) -> Array:
    """log(a / b) of positive numbers, to the last digits also where they are nearly equal."""
    gap = (a - b) / b
    near = jnp.abs(gap) < 0.5
    return jnp.where(near, jnp.log1p(jnp.where(near, gap, 0)), jnp.log(a) - jnp.log(b))


def poisson_deviance(x: Array, mean: Array) -> Array:
    """x log(x / mean) + mean - x for positive x and mean, to the last digits also where they are nearly equal.

    Half the deviance of Poisson counts, by the series of Loader (2000) where terms would cancel.
    """
    ratio = (x - mean) / (x + mean)
    near = jnp.abs(ratio) < 0.05
    square = jnp.where(near, ratio * ratio, 0)
    series = (x - mean) * ratio + 2 * x * ratio * square * jnp.polyval(
        jnp.asarray([1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3], square.dtype), square
    )
    return jnp.where(near, series, x * (jnp.log(x) - jnp.log(mean)) + (mean - x))


def poisson_log_density(counts: Array, mean: Array) -> Array:
    """Log-density of counts >= 0 under Poisson densities of `mean`, which is positive where they are.

    The deviance and what Stirling's formula leaves of gammaln: no difference of large numbers, so that counts of a
    million keep their digits in float32 (Loader 2000).
    """
    seen = counts > 0
    y = jnp.where(seen, counts, 1)
    density = -poisson_deviance(y, jnp.where(seen, mean, 1)) - jnp.log(y) / 2 - stirling_rest(y)
    return jnp.where(seen, density, -mean)


def gamma_normalizer(shape: Array) -> Array:
    """shape log(shape) - shape - gammaln(shape): log-normaliser of a gamma density of mean one, t = log u - u + 1."""
    return jnp.log(shape) / 2 - stirling_rest(shape)


def gamma_shape(mean_statistic: Array, low: float, high: Array | float) -> Array:
    """Maximum-likelihood shape of a gamma density of mean one, within [low, high].

    Args:
        mean_statistic: mean of log u - u + 1, at most zero.
        low: least shape.
        high: greatest shape.
    """
    like = jnp.ones_like(mean_statistic)

    def slope(shape: Array) -> Array:  # log(shape) - digamma(shape) + mean_statistic
        return jax.jvp(gamma_normalizer, (shape,), (jnp.ones_like(shape),))[1] + mean_statistic

    return root_of_decreasing(slope, low * like, high * like)


def ceiling(dtype: Any) -> float:
    """Shape, in units in which the data speak of it, at which a gamma density is to all that they tell a point.

    Its reciprocal costs less than 1e-6 of a row's log-density, and is seen over what rounding makes of statistics.
    """
    return min(1e8, 0.1 / float(jnp.finfo(dtype).eps))


def scored_shape(mean_statistic: Array, shape: Array, information: Array | float, low: float, high: Array | float) -> Array:
    """A step from `shape`, that of a latent gamma density of mean one, towards the maximum of the observed likelihood.

    By Fisher scoring in 1 / shape, in which that is nearly quadratic down to zero, the limit: there EM, whose steps are
    too short by a factor of shape^2, creeps. What would go beyond zero goes to `high`.

    Args:
        mean_statistic: expected mean of log u - u + 1 at `shape`.
        shape: current shape.
        information: of one datum about 1 / shape, in the limit.
        low: least shape.
        high: greatest shape.
    """
    slope = jax.jvp(gamma_normalizer, (shape,), (jnp.ones_like(shape),))[1] + mean_statistic
    # The observed information is about the harmonic sum of that of u itself, (shape + 1) / (2 shape + 1) * shape^2 to 4%,
    # and of the limit: twice that, for it rests on high moments, and a sample may show a multiple.
    inverse = 1 / shape - slope * ((2 * shape + 1) / (shape + 1) + shape / (2 * information) * shape)
    return jnp.clip(1 / jnp.maximum(inverse, 1 / high), low, high)


def log_normal_mass(lower: Array, upper: Array, mean: Array, scale: Array) -> Array:
    """log P(lower < y <= upper) for y ~ Normal(mean, scale^2), ends perhaps infinite; exact in both tails.

    Values and derivatives are finite for any finite width.
    """

    def standardized(end: Array) -> Array:
        finite = jnp.isfinite(end)
        # Beyond 1e4 a tail holds nothing, and an infinite end has no derivative.
        z = jnp.clip((jnp.where(finite, end, 0) - mean) / scale, -1e4, 1e4)
        return jnp.where(finite, z, jnp.sign(end) * 1e4)

    lower, upper = standardized(lower), standardized(upper)
    right = lower > 0
    low, high = jnp.where(right, -upper, lower), jnp.where(right, -lower, upper)
    top = log_ndtr(high)
    gap = jnp.minimum(log_ndtr(low) - top, -jnp.finfo(top.dtype).tiny)
    near = gap > -math.log(2)
    return top + jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, gap, -1))), jnp.log1p(-jnp.exp(jnp.where(near, -1, gap))))
