"""Sums over data, block by block: memory does not grow with N."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from jaxem.numerics.trees import any_vmapped, compensated_add
from jaxem.pytree import PyTree, static, struct

#: Bytes that the widest array of one block of all restarts may take, chosen to stay in a CPU's cache.
CPU_BLOCK_BYTES = 1_500_000
CPU_BLOCK_ROWS = (500, 5_000)
ACCELERATOR_BLOCK_BYTES = 1 << 30
ACCELERATOR_BLOCK_ROWS = (131_072, 1 << 62)


@struct
class Blocks:
    """Data cut into equal blocks: every leaf (n_blocks, block, ...).

    Attributes:
        data: the rows; padded and zero-weight rows hold a copy of a valid one.
        weight: (n_blocks, block), 0 in the padding.
        labels: (n_blocks, block, ...) or None.
        axes: names of the mesh axes along which other devices hold other blocks of the same data.
        hard: whether discrete latent values are maximised over (see `jaxem.Rows`).
    """

    data: PyTree
    weight: Array
    labels: PyTree
    axes: tuple[str, ...] = static(default=())
    hard: bool = static(default=False)

    def over_devices(self, total: PyTree) -> PyTree:
        """The sum of every device's `total`, by one all-reduce of one vector; `total` itself where there is one device."""
        if not self.axes:
            return total
        flat, unravel = ravel_pytree(total)
        return unravel(jax.lax.psum(flat, self.axes))

    def total_weight(self) -> Array:
        """Sum of the weights of all data."""
        return self.over_devices(self.weight.sum())


def n_rows(data: PyTree) -> int:
    """Length of the leading axis that all leaves of `data` share."""
    return jax.tree.leaves(data)[0].shape[0]


def float_dtype(data: PyTree) -> Any:
    """The dtype that computation on `data` follows."""
    dtypes = [x.dtype for x in jax.tree.leaves(data) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.result_type(*dtypes) if dtypes else jax.dtypes.canonicalize_dtype(float)


def replace_absent(data: PyTree, weight: Array) -> PyTree:
    """Put a valid row in place of every row whose weight is zero in all restarts, whatever it holds."""
    present = any_vmapped(jax.lax.stop_gradient(weight) > 0)
    first = jnp.argmax(present)[None]

    def leaf(x: Array) -> Array:
        # A select rather than a gather of all rows, so that rows stay on their device.
        return jnp.where(present.reshape(-1, *(1,) * (x.ndim - 1)), x, x[first])

    return jax.tree.map(leaf, data)


def cut(data: PyTree, weight: Array | None, labels: PyTree, block_size: int) -> Blocks:
    """Cut `data` into blocks of about `block_size` rows, with as little padding as can be.

    Args:
        data: pytree whose leaves lead with N.
        weight: (N,) or None for all ones.
        labels: leaves lead with N, or None.
        block_size: rows a block at most.
    """
    n = n_rows(data)
    n_blocks = max(1, math.ceil(n / block_size))
    block = math.ceil(n / n_blocks)
    if n_blocks > 1 and block >= 64:
        block = 8 * math.ceil(block / 8)  # so that blocks can be `refined`
    if weight is None:
        weight = jnp.ones((n,), float_dtype(data))
    else:
        data = replace_absent(data, weight)

    def shape(x: Array, fill_zero: bool = False) -> Array:
        missing = n_blocks * block - n
        if missing:
            tail = jnp.broadcast_to(jnp.zeros_like(x[:1]) if fill_zero else x[:1], (missing, *x.shape[1:]))
            x = jnp.concatenate([x, tail])
        return x.reshape(n_blocks, block, *x.shape[1:])

    return Blocks(jax.tree.map(shape, data), shape(weight, True), jax.tree.map(shape, labels))


def refined(tree: PyTree, pieces: int) -> PyTree:
    """Blocked leaves (n_blocks, block, ...) with each block cut in `pieces`, where that comes out even."""
    block = jax.tree.leaves(tree)[0].shape[1]
    if block % pieces or block < 64 * pieces:
        return tree
    return jax.tree.map(lambda x: x.reshape(-1, block // pieces, *x.shape[2:]), tree)


def dealt(blocks: Blocks, local: PyTree, n: int) -> tuple[Blocks, PyTree]:
    """Rows dealt out in turn to `n` subsets, each cut into blocks no longer than before.

    Args:
        blocks: the data.
        local: leaves (n_blocks, block, ...), or None.
        n: number of subsets, at most that of the rows.

    Returns:
        The two with leaves (n, n_blocks, block, ...); subset i holds rows i, i + n, i + 2 n, ...
    """
    n_blocks, block = blocks.weight.shape
    most = math.ceil(n_blocks * block / n)
    pieces = math.ceil(most / block)
    place = np.arange(pieces * math.ceil(most / pieces)).reshape(1, pieces, -1)
    index = np.arange(n).reshape(-1, 1, 1) + n * place
    there = index < n_blocks * block
    index = np.where(there, index, np.arange(n).reshape(-1, 1, 1))
    take = lambda x: x.reshape(-1, *x.shape[2:])[index]  # noqa: E731
    weight = jnp.where(there, take(blocks.weight), 0)
    data, labels, local = jax.tree.map(take, (blocks.data, blocks.labels, local))
    return dataclasses.replace(blocks, data=data, weight=weight, labels=labels), local


def fold(term: Callable[..., PyTree], *blocked: PyTree) -> PyTree:
    """Sum `term` over the leading (block) axis of `blocked` with compensated additions."""
    first = jax.tree.map(lambda x: x[0], blocked)
    if jax.tree.leaves(blocked)[0].shape[0] == 1:
        return term(*first)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(term, *first))
    step = lambda carry, block: (compensated_add(carry, term(*block)), None)  # noqa: E731
    (total, lost), _ = jax.lax.scan(step, (zero, zero), blocked)
    return jax.tree.map(jnp.subtract, total, lost)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Of a jaxpr and of all those within it, in order."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if (sub := getattr(item, "jaxpr", item if hasattr(item, "eqns") else None)) is not None:
                    yield from equations(sub)


def row_width(term: Callable[..., PyTree], *args: Any) -> int:
    """Widest intermediate array of `term` on one-row blocks, in numbers: what a row costs in memory."""
    made = (v.aval for eqn in equations(jax.make_jaxpr(term)(*args).jaxpr) for v in eqn.outvars)
    return max([1, *(math.prod(aval.shape) for aval in made if hasattr(aval, "shape"))])


def choose_block_size(n: int, width: int, itemsize: int, backend: str) -> int:
    """Rows a block, from shapes and backend: cache-sized on a CPU, large or all on an accelerator.

    Args:
        n: rows.
        width: numbers that a row costs in the widest array, all restarts together.
        itemsize: bytes of a number.
        backend: "cpu", "gpu" or "tpu".
    """
    cpu = backend == "cpu"
    budget = CPU_BLOCK_BYTES if cpu else ACCELERATOR_BLOCK_BYTES
    low, high = CPU_BLOCK_ROWS if cpu else ACCELERATOR_BLOCK_ROWS
    return min(n, max(low, min(high, budget // max(1, width * itemsize))))
