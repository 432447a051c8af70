"""Several processes, on JAX's own runtime: how they begin, agree, and end when one of them is lost.

Every process runs the same program. One that dies breaks the others' next collective; one that is frozen leaves
them waiting. Either way nothing can be saved by going on, and an orderly exit would wait for the lost one too: so
they say one line and leave at once.
"""

from __future__ import annotations

import os
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxem.pytree import PyTree

Number = TypeVar("Number", int, float)

#: Exit code of a process that lost another one (EX_UNAVAILABLE of sysexits.h).
LOST = 69
#: Seconds without an answer after which another process counts as frozen; less than a missed heartbeat takes.
PATIENCE = 20.0
#: Name of the mesh axis along which restarts lie; rows lie along all others.
RESTARTS = "restarts"


def initialize(
    coordinator: str | None = None,
    n_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 30,
    start_seconds: int = 300,
    **options: Any,
) -> None:
    """Join the processes of one job; call it first. A thin call of `jax.distributed.initialize`.

    Under SLURM, Open MPI and on cloud TPUs all arguments may be left out. CPUs talk by gloo.

    Args:
        coordinator: "host:port" of process 0, the same for all.
        n_processes: how many there are.
        process_id: which of them this is, 0 .. n_processes - 1.
        heartbeat_seconds: silence after which a process counts as dead.
        start_seconds: how long to wait for all to join.
        options: others of `jax.distributed.initialize`, e.g. `local_device_ids`.

    Raises:
        RuntimeError: after a computation, when JAX has already chosen its devices.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator, n_processes, process_id,
        initialization_timeout=start_seconds, heartbeat_timeout_seconds=heartbeat_seconds,
        shutdown_timeout_seconds=heartbeat_seconds, **options,
    )  # fmt: skip


# --- rows ---------------------------------------------------------------------------------------
def row_axes(mesh: Mesh) -> tuple[str, ...]:
    """Names of the axes of `mesh` along which rows lie: all but "restarts"."""
    return tuple(name for name in mesh.axis_names if name != RESTARTS)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows cut along the row axes of `mesh`, in order."""
    return NamedSharding(mesh, PartitionSpec(row_axes(mesh)))


def shards_here(mesh: Mesh) -> int:
    """Into how many pieces the rows of this process are cut."""
    along_rows = [mesh.axis_names.index(name) for name in row_axes(mesh)]
    own = np.argwhere(np.vectorize(lambda d: d.process_index)(mesh.devices) == jax.process_index())
    return len({tuple(place[along_rows]) for place in own})


def from_local_rows(rows: PyTree, mesh: Mesh) -> PyTree:
    """Arrays over `mesh` whose rows are those of process 0, then those of process 1, and so on.

    Args:
        rows: this process's rows, NumPy arrays; as many in every process, a multiple of its devices on `mesh`.
        mesh: spans all processes.

    Raises:
        ValueError: for a number of rows that its devices cannot share equally, or rows built otherwise in another process.
    """
    sharding, pieces = row_sharding(mesh), shards_here(mesh)
    built = repr((jax.tree.structure(rows), [(x.shape, str(x.dtype)) for x in jax.tree.leaves(rows)]))
    number = zlib.crc32(built.encode()) >> 1
    if agreed(number, mesh) != -agreed(-number, mesh):
        raise ValueError(
            f"rows must have one structure, shapes and dtypes in all processes; process {jax.process_index()} has {built}"
        )
    for x in jax.tree.leaves(rows):
        if x.shape[0] % pieces:
            raise ValueError(f"rows must be a multiple of this process's {pieces} devices along the rows; got {x.shape[0]}")
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), rows)


def to_local_rows(arrays: PyTree) -> PyTree:
    """This process's rows as NumPy arrays, the opposite of `from_local_rows`; arrays of this process alone as they are."""

    def leaf(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        pieces = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
        return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])

    return jax.tree.map(leaf, arrays)


# --- agreement ----------------------------------------------------------------------------------
def spans_processes(mesh: Mesh | None) -> bool:
    """Whether devices of several processes work together on `mesh`."""
    return mesh is not None and mesh.is_multi_process


def agreed(value: Number, mesh: Mesh | None) -> Number:
    """The largest `value` of all processes: what the host decides by it, all decide alike.

    A clock read by each for itself would send them different ways, and the next collective would wait for ever.
    """
    if not spans_processes(mesh):
        return value
    return type(value)(gathered(np.asarray(value)).max())


def gathered(value: np.ndarray) -> np.ndarray:
    """(processes, ...) what each of them holds."""
    return np.asarray(multihost_utils.process_allgather(value))


@contextmanager
def together(mesh: Mesh | None) -> Iterator[None]:
    """An exception in one process becomes one in every process.

    Raises:
        RuntimeError: in those that had none of their own.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = agreed(int(failure is not None) * (jax.process_index() + 1), mesh)
    if failure is not None:
        raise failure
    if failed:
        raise RuntimeError(f"process {failed - 1} refused its input; its own message says why")


# --- the end ------------------------------------------------------------------------------------
def leave(reason: str) -> None:
    """One line, and out: the exit barrier of JAX's runtime would wait for the lost process for minutes."""
    first_line = reason.strip().split("\n")[0]
    print(f"jaxem: process {jax.process_index()} of {jax.process_count()} ends: {first_line}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(LOST)


def _from_the_runtime(error: Exception) -> bool:
    """Whether XLA's runtime raised it: also where a program is launched, whence its errors come as ValueError."""
    codes = ("UNKNOWN:", "UNAVAILABLE:", "INTERNAL:", "ABORTED:", "DEADLINE_EXCEEDED:", "FAILED_PRECONDITION:")
    return isinstance(error, jax.errors.JaxRuntimeError) or str(error).startswith(codes)


@contextmanager
def no_survivors(mesh: Mesh | None) -> Iterator[None]:
    """Leave when a collective over `mesh` fails, for then another process is gone."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not spans_processes(mesh) or not _from_the_runtime(error):
            raise
        leave(f"work with the other processes failed, one may be lost ({error})")


@contextmanager
def watchdog(mesh: Mesh | None, usual: float | None) -> Iterator[None]:
    """Leave when what is done within takes far longer than `usual`: then another process is frozen.

    Args:
        mesh: nothing is watched unless it spans processes.
        usual: seconds that the like took before; None the first time, when much of it is compilation: not watched.
    """
    if usual is None or not spans_processes(mesh):
        yield
        return
    limit = PATIENCE + 10 * usual
    timer = threading.Timer(limit, leave, [f"another process has not answered for {limit:.0f} s"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
