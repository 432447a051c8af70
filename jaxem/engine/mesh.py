"""A fit on several devices: rows, blocks and per-datum parameters stay where they are, and statistics are added up.

The whole loop runs on every device, with its own blocks and lanes; it meets the others in one all-reduce of
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
from jaxem.engine import restarts
from jaxem.engine.loop import Lane
from jaxem.engine.problem import Problem
from jaxem.engine.restarts import NEVER, Queue, queued
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


def lane_pieces(mesh: Mesh | None) -> int:
    """Groups of devices that share the lanes."""
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


def lane_specs(mesh: Mesh | None) -> Lane:
    """Where the leaves of lanes lie: the lanes along the axis "restarts", their rows along the others."""
    axis = RESTARTS if mesh is not None and RESTARTS in mesh.axis_names else None
    fields: dict[str, Any] = {f.name: P(axis) for f in dataclasses.fields(Lane)}
    rows = P(axis, () if mesh is None else row_axes(mesh))
    return Lane(**{**fields, "local": rows, "began": rows})


def map_lanes(problem: Problem, function: Callable[..., Lane], lanes: PyTree, *numbers: Any) -> Lane:
    """`function(problem, lanes, *numbers)` on every device, with its own blocks and its own lanes.

    Args:
        problem: what the lanes share.
        function: gives lanes.
        lanes: leaves lead with R: lanes, or parameters to start them from.
        numbers: further arguments, the same everywhere.

    Returns:
        Lanes, the same on every device but for `local`, whose rows stay.
    """
    mesh = problem.mesh
    if mesh is None:
        return function(problem, lanes, *numbers)
    specs = lane_specs(mesh)
    in_specs = (specs if isinstance(lanes, Lane) else specs.params, *[P()] * len(numbers))

    # As many lanes for every group of devices: copies of the last one fill up.
    count, groups = jax.tree.leaves(lanes)[0].shape[0], lane_pieces(mesh)
    full = np.minimum(np.arange(-(-count // groups) * groups), count - 1)
    lanes = jax.tree.map(lambda x: x[full], lanes) if len(full) > count else lanes
    new = on_devices(problem, function, in_specs, specs)(lanes, *map(jnp.asarray, numbers))
    new = jax.tree.map(lambda x: x[:count], new) if len(full) > count else new
    same = jax.lax.with_sharding_constraint(dataclasses.replace(new, local=(), began=()), NamedSharding(mesh, P()))
    return dataclasses.replace(same, local=new.local, began=new.began)


def run(problem: Problem, queue: Queue, budget: Array | int = NEVER) -> Queue:
    """`jaxem.engine.restarts.run` on every device; where groups of devices share the lanes, each has a queue of its own."""
    budget, groups = jnp.asarray(budget), lane_pieces(problem.mesh)
    if groups == 1:
        fields: dict[str, Any] = {f.name: P() for f in dataclasses.fields(Queue)}
        specs = Queue(**{**fields, "lanes": lane_specs(problem.mesh)})
        return on_devices(problem, restarts.run, (specs, P()), specs)(queue, budget)

    def own(problem: Problem, lanes: Lane, limit: Array, budget: Array) -> Lane:
        return restarts.run(problem, queued(lanes, queue.slots.shape[0], None, limit), budget).lanes

    # Lanes that are not in the queue wait as if they had ended.
    status = queue.lanes.status
    chosen = jnp.zeros(status.shape, bool).at[queue.order].set(True)
    lanes = dataclasses.replace(queue.lanes, status=jnp.where(chosen, status, jnp.int32(Status.MAX_STEPS)))
    lanes = map_lanes(problem, own, lanes, queue.limit, budget)
    return dataclasses.replace(queue, lanes=dataclasses.replace(lanes, status=jnp.where(chosen, lanes.status, status)))
