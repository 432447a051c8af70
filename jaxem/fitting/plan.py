"""What a fit will take, before it is run: memory, arithmetic, and how the work is cut up."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data.validation import check_positive_int
from jaxem.engine.em import EM
from jaxem.engine.loop import step
from jaxem.engine.problem import Algorithm
from jaxem.engine.regularizer import Regularizer
from jaxem.engine.restarts import Rounds, take
from jaxem.engine.stop import Stop
from jaxem.fitting.arithmetic import operations
from jaxem.fitting.checks import check_init
from jaxem.fitting.coordinates import cast
from jaxem.fitting.layout import available_bytes, gigabytes, memory_limit, n_bytes
from jaxem.fitting.segments import _run as segment_jit
from jaxem.fitting.solve import begin_jit
from jaxem.fitting.task import Options, Task
from jaxem.model import Model
from jaxem.numerics.blocks import float_dtype, n_rows
from jaxem.pytree import PyTree


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `plan` foresees.

    Attributes:
        block_size: rows of one block of the E-step.
        n_blocks: blocks.
        restart_batch: restarts stepped together.
        flops: floating-point operations of one EM map of one restart. Of two forms of an E-step the dearer counts;
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
        model: the model.
        data: as for `fit`, or with `jax.ShapeDtypeStruct` leaves in place of arrays.
        n_restarts: R.
        init: as for `fit`.
        weight: as for `fit`.
        labels: as for `fit`.
        algorithm: as for `fit`.
        block_size: as for `fit`.
        rounds: as for `fit`.
    """
    check_init(model, init)
    concrete = not any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(data))
    shapes = jax.tree.map(_shape, model.validate(data) if concrete else data)
    dtype, limit = float_dtype(shapes), memory_limit()
    options = Options(check_positive_int(n_restarts, "n_restarts"), block_size, rounds, Regularizer(), None, limit)
    number, step_count = jax.ShapeDtypeStruct((), dtype), jax.ShapeDtypeStruct((), jnp.int32)
    weight = None if weight is None else jax.ShapeDtypeStruct((n_rows(shapes),), dtype)
    labels = None if labels is None else jax.tree.map(_shape, labels)
    task = Task(
        model, shapes, weight, labels, cast(init, dtype), jax.random.key(0), algorithm, Stop(), step_count, options, number
    )
    with jax.default_matmul_precision("highest"):
        begin = begin_jit.lower(task)
        problem, queue, layout = begin.out_info
        restart = jax.eval_shape(lambda restarts: take(restarts, jnp.int32(0)), queue.restarts)
        return Plan(
            block_size=layout.block_size,
            n_blocks=problem.blocks.weight.shape[0],
            restart_batch=layout.width,
            flops=operations(jax.make_jaxpr(step)(problem, restart)),
            data_bytes=n_bytes(shapes),
            start_bytes=_held(begin),
            loop_bytes=_held(segment_jit.lower(problem, queue, step_count)),
            available_bytes=available_bytes() if limit is None else limit,
        )


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype as they will be on the device."""
    return jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(jnp.result_type(x)))


def _held(lowered: Any) -> int:
    """Bytes that a program holds: arguments, outputs and temporaries, what is written in place once."""
    memory = lowered.compile().memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return held - memory.alias_size_in_bytes
