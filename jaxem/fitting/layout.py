"""How a fit's work is cut up: rows of a block, and restarts stepped together, so that it runs well and fits in memory."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxem.distributed import agreed, spans_processes
from jaxem.engine.e_step import block_rows, weighted_total
from jaxem.engine.mesh import restart_pieces, row_pieces
from jaxem.model import Model
from jaxem.numerics.blocks import Blocks, choose_block_size, float_dtype, n_rows, row_width
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params

#: Arrays of the widest size that an E-step holds at once: scores, responsibilities, residuals, their gradients.
LIVE = 6


@struct
class Layout:
    """Structure alone, so that it passes out of jit.

    Attributes:
        width: restarts stepped together.
        block_size: rows of one block.
    """

    width: int = static()
    block_size: int = static()


def lay_out(model: Model, params: Params, data: PyTree, labels: PyTree, options: Any, hard: bool = False) -> Layout:
    """What suits the backend's caches, made smaller where memory would not hold it.

    Args:
        model: the model.
        params: of one restart, for shapes.
        data: all rows.
        labels: theirs, or None.
        options: with `n_restarts`, `block_size` (None: chosen) and `memory_limit` (None: what is available now).
        hard: whether the E-step is (see `jaxem.Rows`).
    """
    n, backend, itemsize = n_rows(data) // row_pieces(options.mesh), jax.default_backend(), float_dtype(data).itemsize
    n_restarts = -(-options.n_restarts // restart_pieces(options.mesh))

    def across(width: int) -> int:
        return rows_width(model, params, data, labels, width, hard)

    width = restarts_at_once(n, n_restarts, across(1), backend)
    block = min(n, options.block_size or choose_block_size(n, across(width), itemsize, backend))
    available = available_bytes() if options.memory_limit is None else options.memory_limit
    available -= n_bytes(data)  # they are copied into blocks
    wanted = Layout(width, block)

    def needed() -> int:
        return LIVE * across(width) * block * itemsize

    first = needed()
    while needed() > available and (width, block) != (1, 1):
        # Small blocks cost little down to a few hundred rows; then restarts one after another; then what remains.
        if block > 256 or width == 1:
            block = -(-block // 2)
        else:
            width = -(-width // 2)
    if (width, block) != (wanted.width, wanted.block_size):
        warnings.warn(
            f"fit: blocks of {wanted.block_size} rows and {wanted.width} restarts at a time would take about"
            f" {gigabytes(first)} where {gigabytes(max(available, 0))} are left: now blocks of {block} and {width} at a time"
            + ("" if needed() <= available else ", which may still be too much"),
            stacklevel=2,
        )
    return Layout(width, block)


def rows_width(model: Model, params: Params, data: PyTree, labels: PyTree, restarts: int, hard: bool = False) -> int:
    """Numbers that one row costs in the widest array of an E-step of all restarts together."""
    row = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), data)
    label = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), labels)
    one = Blocks(row, jnp.ones((1,), float_dtype(data)), label, hard=hard)
    about = model.centered(params)
    packed = jax.eval_shape(lambda p: about.pack(about.natural(p)), params)
    local = jax.eval_shape(lambda q: about.local(q, row, None), packed) if about.local else None

    def term(params, packed, local):
        return weighted_total(about.log_marginal(packed, row, block_rows(model, params, one, local)), one.weight)

    restart = (params, packed, local)
    return row_width(jax.vmap(term), *jax.tree.map(lambda s: jnp.zeros((restarts, *s.shape), s.dtype), restart))


def restarts_at_once(n: int, n_restarts: int, width: int, backend: str) -> int:
    """Restarts stepped together: all on an accelerator; on a CPU enough to fill the cores, few enough for the cache."""
    if backend != "cpu":
        return n_restarts
    return min(n_restarts, max(16, 500_000 // (n * width)))


# --- memory ----------------------------------------------------------------------------------
def n_bytes(tree: PyTree) -> int:
    """Bytes of all leaves."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def memory_limit(mesh: Mesh | None = None) -> int | None:
    """What the environment variable JAXEM_MEMORY_LIMIT allows a fit, in bytes; None: all that is available.

    Processes that work together on `mesh` must cut the work up alike: theirs is the power of two that all of them have.
    """
    text = os.environ.get("JAXEM_MEMORY_LIMIT")
    if not text:
        return 1 << -agreed(1 - available_bytes().bit_length(), mesh) if spans_processes(mesh) else None
    if not text.isdigit():
        raise ValueError(f"JAXEM_MEMORY_LIMIT must be a number of bytes; got {text!r}")
    return int(text)


def available_bytes() -> int:
    """Memory that is free now: the accelerator's own, or the machine's within the limits of its control group."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.exists():
        free += [int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable")]
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        if (group / limit).exists() and (most := (group / limit).read_text().strip()) != "max":
            free.append(int(most) - int((group / used).read_text()))
    return min(free)


def gigabytes(n: int) -> str:
    """In words."""
    return f"{n / 1e9:.2f} GB" if n >= 1e7 else f"{n / 1e6:.2f} MB"
