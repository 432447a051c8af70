"""A fit on several devices: rows, blocks and per-datum parameters stay where they are, and statistics are added up.

The whole loop runs on every device, with its own blocks and restarts; it meets the others in one all-reduce of
(loglik, stats) an iteration. Left to the compiler, the sum becomes an all-gather of the data or an all-reduce in
every block. JAX's checks of what varies over devices are off: they would ask every loop in a model, the user's own
included, for casts of its carry. What they protect, gradients across devices, is taken nowhere: gradients are taken
on one device, then added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxem.data.validation import is_traced
from jaxem.distributed import RESTARTS, row_axes
from jaxem.engine.loop import Restart
from jaxem.engine.problem import Problem
from jaxem.engine.restarts import NEVER, Queue, queued, spurious
from jaxem.engine.restarts import run as run_here
from jaxem.numerics.blocks import Blocks, cut, replace_absent
from jaxem.pytree import PyTree
from jaxem.types import Status


def mesh_of(mesh: Mesh | None, data: PyTree) -> Mesh | None:
    """The mesh given, or that over which `data` lie; with automatic axes.

    Raises:
        TypeError: for what is no mesh.
        ValueError: for a mesh of some of several processes.
    """
    if mesh is None:
        shardings = [x.sharding for x in jax.tree.leaves(data) if isinstance(x, jax.Array) and not is_traced(x)]
        meshes: list[Any] = [s.mesh for s in shardings if isinstance(s, NamedSharding) and not s.is_fully_replicated]
        if not meshes:
            return None
        mesh = meshes[0]
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, e.g. jax.make_mesh((8,), ('data',)); got {type(mesh).__name__}")
    if not row_axes(mesh):
        raise ValueError(f"mesh must have an axis for the rows besides {RESTARTS!r}; got {mesh.axis_names}")
    processes = {d.process_index for d in mesh.devices.flat}
    if len(processes) not in (1, jax.process_count()):
        raise ValueError(f"mesh must lie in one process or span all {jax.process_count()}; got processes {sorted(processes)}")
    return Mesh(mesh.devices, mesh.axis_names)


def row_pieces(mesh: Mesh | None) -> int:
    """Devices that share the rows."""
    return 1 if mesh is None else int(np.prod([mesh.shape[name] for name in row_axes(mesh)]))


def restart_pieces(mesh: Mesh | None) -> int:
    """Groups of devices that share the restarts."""
    return 1 if mesh is None else mesh.shape.get(RESTARTS, 1)


def spread(function: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` on every device of `mesh`, with its own piece of what the specs cut; without a mesh, itself."""
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def cut_on(mesh: Mesh | None, data: PyTree, weight: Array | None, labels: PyTree, block_size: int) -> Blocks:
    """`jaxem.numerics.blocks.cut`, by every device for its own rows."""
    if mesh is None:
        return cut(data, weight, labels, block_size)
    if weight is not None:
        data = replace_absent(data, weight)  # a device may hold no valid row of its own
    rows = P(row_axes(mesh))

    def own(data: PyTree, weight: Array | None, labels: PyTree) -> Blocks:
        return cut(data, weight, labels, block_size)

    return spread(own, mesh, rows, rows)(data, weight, labels)


def uncut(mesh: Mesh | None, tree: PyTree, n: int) -> PyTree:
    """Rows (n, ...) of leaves (n_blocks, block, ...) that `cut_on` made."""
    rows = None if mesh is None else P(row_axes(mesh))
    own = n // row_pieces(mesh)

    def flat(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:own], tree)

    return spread(flat, mesh, rows, rows)(tree)


def on_devices(problem: Problem, function: Callable[..., Any], in_specs: tuple[Any, ...], out_specs: Any) -> Callable[..., Any]:
    """`function(problem, *args)` as a function of `args`: on every device of the problem's mesh, with its own blocks.

    Args:
        problem: its `mesh` says which devices; None: `function` with the problem, no more.
        function: adds up by `Blocks.over_devices`.
        in_specs: of `args`.
        out_specs: of what it returns.
    """
    mesh = problem.mesh
    if mesh is None:
        return lambda *args: function(problem, *args)
    fields: dict[str, Any] = {f.name: P() for f in dataclasses.fields(Problem)}
    specs = Problem(**{**fields, "blocks": P(row_axes(mesh)), "mesh": mesh})

    def alone(problem: Problem, *args: Any) -> Any:
        blocks = dataclasses.replace(problem.blocks, axes=row_axes(mesh))
        return function(dataclasses.replace(problem, blocks=blocks, mesh=None), *args)

    return lambda *args: spread(alone, mesh, (specs, *in_specs), out_specs)(problem, *args)


def restart_specs(mesh: Mesh | None) -> Restart:
    """Where the leaves of restarts lie: the restarts along the axis "restarts", their rows along the others."""
    axis = RESTARTS if mesh is not None and RESTARTS in mesh.axis_names else None
    fields: dict[str, Any] = {f.name: P(axis) for f in dataclasses.fields(Restart)}
    rows = P(axis, () if mesh is None else row_axes(mesh))
    return Restart(**{**fields, "local": rows, "began": rows})


def map_restarts(problem: Problem, function: Callable[..., Restart], restarts: PyTree, *numbers: Any) -> Restart:
    """`function(problem, restarts, *numbers)` on every device, with its own blocks and its own restarts.

    Args:
        problem: what the restarts share.
        function: gives restarts.
        restarts: leaves lead with R: restarts, or parameters to start them from.
        numbers: further arguments, the same everywhere.

    Returns:
        Restarts, the same on every device but for `local`, whose rows stay.
    """
    mesh = problem.mesh
    if mesh is None:
        return function(problem, restarts, *numbers)
    specs = restart_specs(mesh)
    in_specs = (specs if isinstance(restarts, Restart) else specs.params, *[P()] * len(numbers))

    # As many restarts for every group of devices: copies of the last one fill up.
    count, groups = jax.tree.leaves(restarts)[0].shape[0], restart_pieces(mesh)
    full = np.minimum(np.arange(-(-count // groups) * groups), count - 1)
    restarts = jax.tree.map(lambda x: x[full], restarts) if len(full) > count else restarts
    new = on_devices(problem, function, in_specs, specs)(restarts, *map(jnp.asarray, numbers))
    new = jax.tree.map(lambda x: x[:count], new) if len(full) > count else new
    same = jax.lax.with_sharding_constraint(dataclasses.replace(new, local=(), began=()), NamedSharding(mesh, P()))
    return dataclasses.replace(same, local=new.local, began=new.began)


def spurious_restarts(problem: Problem, params: PyTree) -> Array:
    """`jaxem.engine.restarts.spurious` on every device, with its own blocks."""
    return on_devices(problem, spurious, (P(),), P())(params)


def run(problem: Problem, queue: Queue, budget: Array | int = NEVER) -> Queue:
    """`jaxem.engine.restarts.run` on every device; where groups of devices share the restarts, each has a queue of its own."""
    budget, groups = jnp.asarray(budget), restart_pieces(problem.mesh)
    if groups == 1:
        fields: dict[str, Any] = {f.name: P() for f in dataclasses.fields(Queue)}
        specs = Queue(**{**fields, "restarts": restart_specs(problem.mesh)})
        return on_devices(problem, run_here, (specs, P()), specs)(queue, budget)

    def own(problem: Problem, restarts: Restart, limit: Array, budget: Array) -> Restart:
        return run_here(problem, queued(restarts, queue.slots.shape[0], None, limit), budget).restarts

    # Restarts that are not in the queue wait as if they had ended.
    status = queue.restarts.status
    chosen = jnp.zeros(status.shape, bool).at[queue.order].set(True)
    restarts = dataclasses.replace(queue.restarts, status=jnp.where(chosen, status, jnp.int32(Status.MAX_STEPS)))
    restarts = map_restarts(problem, own, restarts, queue.limit, budget)
    return dataclasses.replace(queue, restarts=dataclasses.replace(restarts, status=jnp.where(chosen, restarts.status, status)))
