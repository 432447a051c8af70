"""Arithmetic on pytrees, sums that stay accurate, and what holds anywhere under vmap."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import custom_vmap

from jaxem.pytree import PyTree


def module_of(*trees: PyTree) -> Any:
    """NumPy where every leaf is a NumPy array, so that what is on the host stays there; else `jax.numpy`."""
    return np if all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(trees)) else jnp


def on_device(tree: PyTree) -> PyTree:
    """What is on the host as JAX's arrays, by explicit transfers that compile nothing; arrays stay where they lie."""
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), tree)


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
def any_vmapped(flag: Array) -> Array:
    """`flag`, or under `vmap` whether it holds in any entry of the axis: the result stays unbatched.

    A `lax.cond` on it therefore stays a branch under `vmap` (a batched predicate would run both
    sides), and data masked by it stay shared by all entries, restarts above all.
    """
    return flag


@any_vmapped.def_vmap
def _(axis_size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    del axis_size
    return (flag.any(0) if in_batched[0] else flag), False


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Inexact array leaves in `dtype`; Python numbers and integers as they are."""

    def leaf(x):
        x = np.asarray(x) if isinstance(x, np.generic) else x  # or its transfer would not be explicit
        inexact = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(x, dtype) if inexact and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.tree.map(leaf, tree)
