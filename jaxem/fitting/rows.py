"""Rows of a task: on the host, and on the devices of its mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxem import init as starts
from jaxem.data.validation import is_traced
from jaxem.distributed import agreed, from_local_rows, row_sharding, shards_here, to_local_rows
from jaxem.engine.mesh import row_pieces
from jaxem.fitting.layout import memory_limit
from jaxem.fitting.task import Task
from jaxem.numerics.blocks import float_dtype, n_rows
from jaxem.numerics.trees import module_of
from jaxem.pytree import PyTree


def lengthened(tree: PyTree, extra: int) -> PyTree:
    """`extra` copies of the first row behind the last one."""

    def leaf(x: Any) -> Any:
        xp = module_of(x)
        return xp.concatenate([x, xp.repeat(x[:1], extra, 0)]) if extra else x

    return jax.tree.map(leaf, tree)


def shared_out(mesh: Mesh | None, data: PyTree, weight: Any, labels: PyTree) -> tuple[PyTree, Any, PyTree]:
    """Rows laid over `mesh`, padded with rows of weight zero to as many for every device.

    Args:
        mesh: None leaves all as it is.
        data: rows: those of this process, or inside jit all of them.
        weight: (N,) or None.
        labels: leaves lead with N, or None.
    """
    if mesh is None:
        return data, weight, labels
    n, traced = n_rows(data), is_traced(data, weight, labels)
    pieces = row_pieces(mesh) if traced else shards_here(mesh)
    among = None if traced else mesh  # inside jit all processes see all rows
    extra = agreed(-(-n // pieces), among) * pieces - n
    if agreed(extra, among):
        weight = np.ones((n,), float_dtype(data)) if weight is None else weight
        weight = lengthened(weight, extra) * (np.arange(n + extra) < n)
    rows = (lengthened(data, extra), weight, lengthened(labels, extra))
    if traced:
        return jax.lax.with_sharding_constraint(rows, row_sharding(mesh))
    return from_local_rows(jax.tree.map(np.asarray, rows), mesh)


def on_host(task: Task) -> Task:
    """A task with the rows of this process, wherever they lay."""
    data, weight, labels = to_local_rows([task.data, task.weight, task.labels])
    return dataclasses.replace(task, data=data, weight=weight, labels=labels)


def placed(task: Task) -> Task:
    """A task whose rows lie over its mesh, starting labels among them, with the memory that there is for them."""
    mesh, init = task.options.mesh, task.init
    options = dataclasses.replace(task.options, memory_limit=memory_limit(None if task.traced else mesh))
    data, weight, labels = shared_out(mesh, task.data, task.weight, task.labels)
    if mesh is not None and isinstance(init, starts.Labels):
        init = starts.Labels(shared_out(mesh, jnp.asarray(init.labels), None, None)[0])
    return dataclasses.replace(task, data=data, weight=weight, labels=labels, init=init, options=options)
