"""One-dimensional search: roots of decreasing functions, step lengths."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


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
