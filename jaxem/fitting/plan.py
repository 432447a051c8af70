"""What a fit will take, before it is run: memory, arithmetic, and how the work is cut up."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.engine.em import EM
from jaxem.engine.loop import step
from jaxem.engine.problem import Algorithm
from jaxem.engine.restarts import Rounds, take
from jaxem.fitting.arguments import described_by, task_of
from jaxem.fitting.arithmetic import operations
from jaxem.fitting.fit import fit
from jaxem.fitting.layout import available_bytes, gigabytes, memory_limit, n_bytes
from jaxem.fitting.segments import run_segment
from jaxem.fitting.solve import begin_jit
from jaxem.fitting.task import Task
from jaxem.model import Model
from jaxem.numerics.blocks import float_dtype, n_rows
from jaxem.numerics.switches import own_switches
from jaxem.numerics.trees import cast
from jaxem.pytree import PyTree


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `plan` foresees.

    Attributes:
        block_size: rows of one block of the E-step.
        n_blocks: blocks.
        restart_batch: restarts stepped together.
        flops: floating-point operations of one EM map of one restart. Of two variants of an E-step the dearer counts;
            of a loop whose rounds are not known, as in an M-step by Optax, one round.
        data_bytes: the data as they are given.
        start_bytes: what the fit holds at most, beyond the data given, while it starts: the data on the device and
            in blocks, starting values, temporaries.
        loop_bytes: the same while it runs.
        available_bytes: memory there is now, or the limit.
    """

    block_size: int
    n_blocks: int
    restart_batch: int
    flops: int
    data_bytes: int
    start_bytes: int
    loop_bytes: int
    available_bytes: int

    @property
    def peak_bytes(self) -> int:
        """What the fit holds at most, beyond the data given."""
        return max(self.start_bytes, self.loop_bytes)

    @property
    def fits(self) -> bool:
        """Whether that is available."""
        return self.peak_bytes <= self.available_bytes

    def __str__(self) -> str:
        verdict = "fits" if self.fits else "DOES NOT FIT"
        return (
            f"{self.n_blocks} blocks of {self.block_size} rows, {self.restart_batch} restarts at a time\n"
            f"{self.flops:.3g} floating-point operations an iteration and restart\n"
            f"at most {gigabytes(self.peak_bytes)} beyond the data's {gigabytes(self.data_bytes)}: {verdict} in the"
            f" {gigabytes(self.available_bytes)} available"
        )


@described_by(fit)
def plan(
    model: Model,
    data: PyTree,
    *,
    n_restarts: int = 1,
    init: Any = None,
    weight: Any = None,
    labels: Any = None,
    algorithm: Algorithm = EM(),  # noqa: B008
    block_size: int | None = None,
    rounds: Rounds | None = None,
) -> Plan:
    """Foresee what `fit` with the same arguments will take; compiles, computes nothing.

    Memory is XLA's own account of the two programs of a fit: arguments, outputs and temporaries.

    Args:
        model: as in `fit`.
        data: as in `fit`, or with `jax.ShapeDtypeStruct` leaves in place of arrays.
        n_restarts: as in `fit`.
        init: as in `fit`.
        weight: as in `fit`.
        labels: as in `fit`.
        algorithm: as in `fit`.
        block_size: as in `fit`.
        rounds: as in `fit`.
    """
    task = task_of(
        model, data, init=init, n_restarts=n_restarts, weight=weight, labels=labels, algorithm=algorithm,
        block_size=block_size, rounds=rounds, key=jax.random.key(0), standardize=False,
    )  # fmt: skip
    task = _shapes(task)
    with own_switches():
        begin = begin_jit.lower(task)
        problem, queue, layout = begin.out_info
        restart = jax.eval_shape(lambda restarts: take(restarts, jnp.int32(0)), queue.restarts)
        limit = task.options.memory_limit
        return Plan(
            block_size=layout.block_size,
            n_blocks=problem.blocks.weight.shape[0],
            restart_batch=layout.width,
            flops=operations(jax.make_jaxpr(step)(problem, restart)),
            data_bytes=n_bytes(task.data),
            start_bytes=_held(begin),
            loop_bytes=_held(run_segment.lower(problem, queue, task.max_steps)),
            available_bytes=available_bytes() if limit is None else limit,
        )


def _shapes(task: Task) -> Task:
    """A task with shapes in place of arrays."""
    data, weight = task.data, task.weight
    if not any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(data)):
        data = task.model.validate(data)
    data = jax.tree.map(_shape, data)
    dtype = float_dtype(data)
    return dataclasses.replace(
        task,
        data=data,
        weight=None if weight is None else jax.ShapeDtypeStruct((n_rows(data),), dtype),
        labels=None if task.labels is None else jax.tree.map(_shape, task.labels),
        init=cast(task.init, dtype),
        max_steps=jax.ShapeDtypeStruct((), jnp.int32),
        log_abs_det=jax.ShapeDtypeStruct((), dtype),
        options=dataclasses.replace(task.options, memory_limit=memory_limit()),
    )


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype as they will be on the device."""
    return jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(jnp.result_type(x)))


def _held(lowered: Any) -> int:
    """Bytes that a program holds: arguments, outputs and temporaries, what is written in place once."""
    memory = lowered.compile().memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return held - memory.alias_size_in_bytes
