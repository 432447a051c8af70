"""Answers about rows, block of rows by block: what is computed on the way to them does not grow with N."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics.blocks import equations, n_rows
from jaxem.pytree import PyTree

#: Methods of (params, data) that answer each datum by itself.
METHODS = {"log_prob", "posterior", "predict", "viterbi", "class_posterior", "impute", "pairwise", "lag_one"}
#: Bytes of an answer that comes as arrays in memory, where nothing else is said.
MAX_BYTES = 1 << 32
#: Bytes that the widest array of a block may take, or as many as the data do; smaller answers are not looked at.
CPU_BYTES, ACCELERATOR_BYTES = 1 << 24, 1 << 30
#: Bytes that an address must be a multiple of for JAX to take an array without a copy.
ALIGNMENT = 64

OPTIONS = """

        Rows are answered block by block. `max_bytes` bounds what comes as arrays in memory (4 GiB where it is not given);
        `out`, arrays shaped like the answer (a `numpy.memmap`, say), are written and returned; `blocks=True` gives an
        iterator over the answers for successive blocks of rows."""


@dataclasses.dataclass(frozen=True)
class Returned:
    """How an answer is wanted.

    Attributes:
        max_bytes: of an answer in memory.
        out: arrays to write, shaped like the answer, or None.
        blocks: whether to give an iterator over answers for successive blocks of rows.
    """

    max_bytes: int = MAX_BYTES
    out: Any = None
    blocks: bool = False

    def __post_init__(self) -> None:
        if not self.max_bytes > 0:
            raise ValueError(f"max_bytes must be positive; got {self.max_bytes}")
        if self.blocks and self.out is not None:
            raise ValueError("out must be None with blocks=True: blocks are given, not written; got both")

    @property
    def plainly(self) -> bool:
        """Whether nothing was said."""
        return self.out is None and not self.blocks and self.max_bytes == MAX_BYTES


@dataclasses.dataclass(frozen=True)
class Plan:
    """How an answer is made.

    Attributes:
        answer: its shapes and dtypes, a tree of `jax.ShapeDtypeStruct`.
        by_row: of each leaf, whether it leads with N; else it is the same for any rows.
        rows: rows of a block; N: the data are taken whole.
    """

    answer: PyTree
    by_row: tuple[bool, ...]
    rows: int

    @property
    def n_bytes(self) -> int:
        """Size of the answer."""
        return sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(self.answer))


def is_small(params: PyTree, data: PyTree) -> bool:
    """Whether no array of an answer can matter: judged by shapes alone, before anything is traced."""
    longest = max([1, *(size for x in jax.tree.leaves(params) for size in np.shape(x))])
    return 8 * longest * sum(np.size(x) for x in jax.tree.leaves(data)) <= CPU_BYTES


def planned(answer: Callable[[PyTree, PyTree], PyTree], params: PyTree, data: PyTree) -> Plan | None:
    """How to make an answer, from shapes alone; None where it looks at values and cannot say.

    Widths come from how the arrays of the program for three rows exceed those for two: some depend on parameters alone.
    """
    n, cpu = n_rows(data), jax.default_backend() == "cpu"
    few = lambda m: jax.tree.map(lambda x: jax.ShapeDtypeStruct((m, *x.shape[1:]), x.dtype), data)  # noqa: E731
    try:
        if n < 3 or _spread(data):
            found = jax.eval_shape(answer, params, data)
            return Plan(found, (False,) * len(jax.tree.leaves(found)), n)
        (two, short), (three, long) = (jax.make_jaxpr(answer, return_shape=True)(params, few(m)) for m in (2, 3))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):  # of a user's, which looks at values
        return None
    by_row = tuple(a.shape != b.shape for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(long), strict=True))
    if any(led and x.shape[0] != 3 for led, x in zip(by_row, jax.tree.leaves(long), strict=True)):
        return None
    leaves, structure = jax.tree.flatten(long)
    whole = [jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype) if led else x for led, x in zip(by_row, leaves, strict=True)]
    small, large = ([_n_bytes(v.aval) for eqn in equations(x.jaxpr) for v in eqn.outvars] for x in (two, three))
    if len(small) == len(large):
        large = [b - a for a, b in zip(small, large, strict=True)]
    budget = max(CPU_BYTES if cpu else ACCELERATOR_BYTES, sum(x.dtype.itemsize * x.size for x in jax.tree.leaves(data)))
    rows = 1 << int(math.log2(max(1, budget // max([1, *large]))))  # of few sizes, so that many N share one program
    return Plan(jax.tree.unflatten(structure, whole), by_row, min(rows, n) if any(by_row) else n)


def _spread(data: PyTree) -> bool:
    """Whether rows lie on several devices, each of which holds its own."""
    return any(len(x.sharding.device_set) > 1 for x in jax.tree.leaves(data) if isinstance(x, jax.Array))


def _n_bytes(aval: Any) -> int:
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 1) if hasattr(aval, "shape") else 0


def check_size(name: str, plan: Plan, wanted: Returned) -> None:
    """Raise ValueError where the answer is larger than wanted, or `out` is not shaped like it."""
    if wanted.out is not None:
        leaves, structure = jax.tree.flatten(plan.answer)
        given = jax.tree.leaves(wanted.out)
        shapes, got = [x.shape for x in leaves], [np.shape(x) for x in given]
        if jax.tree.structure(wanted.out) != structure or shapes != got:
            raise ValueError(f"out must be built like the answer of {name}, of shapes {shapes}; got {got}")
        for have, need in zip(given, leaves, strict=True):
            if isinstance(have, jax.Array) or not np.can_cast(need.dtype, have.dtype, "same_kind"):
                raise ValueError(f"out must be arrays to write that can hold {need.dtype}; got {type(have)} of {have.dtype}")
    elif not wanted.blocks and plan.n_bytes > wanted.max_bytes:
        raise ValueError(
            f"{name} must give at most max_bytes={wanted.max_bytes} bytes; its answer would take {plan.n_bytes}: pass out=, "
            "arrays to write such as numpy.memmap, or blocks=True for an iterator, or raise max_bytes"
        )


def pieces(answer: Callable[[PyTree], PyTree], data: PyTree, rows: int) -> Iterator[tuple[int, PyTree]]:
    """Answers for blocks of rows, each with the number of its first row; the last block overlaps the one before."""
    for start in range(0, n := n_rows(data), rows):
        first = max(0, min(start, n - rows))
        yield first, answer(jax.tree.map(lambda x, i=first: _cut(x, i, rows), data))


def _cut(x: Any, start: int, rows: int) -> Any:
    """Rows of an array; on the host by a view, elsewhere by a program that serves every start."""
    if isinstance(x, np.ndarray) or next(iter(x.sharding.device_set)).platform == "cpu":
        return jax.device_put(jax.device_get(x)[start : start + rows])
    return jax.lax.dynamic_slice_in_dim(x, jax.device_put(np.int32(start)), rows)


def collected(found: Iterator[tuple[int, PyTree]], plan: Plan, out: Any = None) -> PyTree:
    """The whole answer, from its blocks: in `out`, or in arrays that JAX takes over without a copy."""
    leaves, structure = jax.tree.flatten(plan.answer)
    if out is None and jax.default_backend() != "cpu":
        blocks = [jax.tree.leaves(fresh(first, i * plan.rows, block, plan)) for i, (first, block) in enumerate(found)]
        joined = [jnp.concatenate(x) if led else x[-1] for led, x in zip(plan.by_row, zip(*blocks), strict=True)]
        return jax.tree.unflatten(structure, joined)
    written = [aligned(x.shape, x.dtype) for x in leaves] if out is None else jax.tree.leaves(out)
    for first, block in found:
        for place, led, x in zip(written, plan.by_row, jax.tree.leaves(block), strict=True):
            part = jax.device_get(x)
            place[first : first + len(part) if led else None] = part
    if out is not None:
        return out
    return jax.tree.unflatten(structure, map(jax.device_put, written))


def fresh(first: int, start: int, block: PyTree, plan: Plan) -> PyTree:
    """A block that begins with row `first`, without the rows before `start`, which the block before it gave."""
    leaves, structure = jax.tree.flatten(block)
    kept = [x[start - first :] if led and start > first else x for led, x in zip(plan.by_row, leaves, strict=True)]
    return jax.tree.unflatten(structure, kept)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array that JAX takes as it is on a CPU, where others are copied."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + n_bytes].view(dtype).reshape(shape)
