"""Arithmetic that stays finite at structural zeros, and sums that stay accurate.

`log 0`, `0 * -inf` and the gradients of both are NaN in plain JAX; every place where a probability
may be exactly zero goes through one of these helpers instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jax.scipy.special import gammaln, log_ndtr

PyTree = Any

#: Every matrix product of jaxem asks for it by name: NVIDIA GPUs otherwise run float32 in TF32.
PRECISION = jax.lax.Precision.HIGHEST


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


def inner(stats: PyTree, natural: PyTree) -> Array:
    """`<stats, natural>` over two trees of one shape, with `0 * -inf = 0`."""

    def leaf(s, eta):
        absent = s == 0
        return jnp.where(absent, 0, s * jnp.where(absent, 0, eta)).sum()

    return sum(jax.tree.leaves(jax.tree.map(leaf, stats, natural)), start=jnp.zeros(()).astype(_dtype(stats)))


def _dtype(tree: PyTree):
    leaves = jax.tree.leaves(tree)
    return jnp.result_type(*leaves) if leaves else jnp.float32


def tree_add(left: PyTree, right: PyTree) -> PyTree:
    """Leaf-wise sum of two trees."""
    return jax.tree.map(jnp.add, left, right)


def tree_where(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` where the scalar `condition` holds, else `old`, on every leaf."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def all_finite(tree: PyTree) -> Array:
    """Whether every entry of every inexact leaf is finite."""
    checks = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return jnp.stack(checks).all() if checks else jnp.array(True)


def backtracked(too_far: Callable[[Array], Array], size: Array, factor: float, least: float) -> tuple[Array, Array]:
    """`size` shrunk by `factor` while it is `too_far` and above `least`, and whether it still is too far.

    The verdict is carried, not asked for by the loop's condition: under vmap a condition is computed twice, and a
    comparison of floats that comes out differently the second time would go round for ever.
    """

    def shrink(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        size = carry[0] * factor
        return size, too_far(size)

    return jax.lax.while_loop(lambda carry: carry[1] & (carry[0] > least), shrink, (size, too_far(size)))


def root_of_decreasing(f: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Elementwise root of a decreasing function between positive `low` and `high`; the nearer end where it has none there.

    Bisection on a geometric scale, which has no derivative, then one Newton step, which gives the last digits and the
    derivative of the root in whatever `f` closes over (implicit function theorem).

    Args:
        f: decreasing function of an array, elementwise.
        low: lower ends.
        high: upper ends, in the shape of `low`.
    """
    low, high = jax.lax.stop_gradient(low), jax.lax.stop_gradient(high)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = jnp.sqrt(ends[0]) * jnp.sqrt(ends[1])
        above = jax.lax.stop_gradient(f(middle)) > 0
        return jnp.where(above, middle, ends[0]), jnp.where(above, ends[1], middle)

    left, right = jax.lax.fori_loop(0, 60, halve, (low, high))
    x = jax.lax.stop_gradient(jnp.clip(jnp.sqrt(left) * jnp.sqrt(right), low, high))
    value, slope = jax.jvp(f, (x,), (jnp.ones_like(x),))
    falls = slope < 0
    step = x - value / jnp.where(falls, slope, -1)
    # A step that leaves the interval comes from a root that lies outside: it stays at the end, with derivative zero.
    return jnp.where(falls & (step >= low) & (step <= high), step, x)


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


def gamma_normalizer(shape: Array) -> Array:
    """shape log(shape) - shape - gammaln(shape): log-normaliser of a gamma density of mean one, t = log u - u + 1."""
    return jnp.log(shape) / 2 - stirling_rest(shape)


def gamma_shape(mean_statistic: Array, low: float, high: float) -> Array:
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


def compensated_add(carry: tuple[PyTree, PyTree], term: PyTree) -> tuple[PyTree, PyTree]:
    """One step of Kahan's summation: `carry` is (total, lost low-order part)."""

    def leaf(total, lost, x):
        y = x - lost
        new = total + y
        # An infinite total has no low-order part; inf - inf would turn it into NaN.
        return new, jnp.where(jnp.isfinite(new), (new - total) - y, 0)

    total, lost = carry
    pairs = jax.tree.map(leaf, total, lost, term)
    return jax.tree.transpose(jax.tree.structure(total), jax.tree.structure((0, 0)), pairs)


def pairwise_sum(x: Array) -> Array:
    """Sum over the leading axis by halves: the rounding error grows with log N."""
    while x.shape[0] > 1:
        half, odd = divmod(x.shape[0], 2)
        pairs = x[:half] + x[half : 2 * half]
        x = jnp.concatenate([pairs, x[-1:]]) if odd else pairs
    return x[0]


@custom_vmap
def any_lane(flag: Array) -> Array:
    """`flag`, or under `vmap` whether it holds in any lane: the result stays unbatched.

    A `lax.cond` on it therefore stays a branch under `vmap` (a batched predicate would run both
    sides), and data masked by it stay shared by all lanes.
    """
    return flag


@any_lane.def_vmap
def _(axis_size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    del axis_size
    return (flag.any(0) if in_batched[0] else flag), False


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
