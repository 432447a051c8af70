"""E-steps over a stream: in one pass all restarts that still run share every batch, whose statistics add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.sequences import rescaled_data
from jaxem.engine.e_step import Expectation, e_step, unchanged, update_local, weighted_total
from jaxem.engine.loop import Restart, advance
from jaxem.engine.problem import Problem
from jaxem.engine.restarts import Queue, active, put, take
from jaxem.fitting.layout import Layout, lay_out
from jaxem.fitting.monitor import Monitor
from jaxem.fitting.segments import Standing
from jaxem.fitting.task import Options, Race
from jaxem.model import Model
from jaxem.numerics.blocks import Blocks
from jaxem.numerics.trees import compensated_add
from jaxem.pytree import PyTree, struct
from jaxem.streams.batches import Stream
from jaxem.streams.sources import WAITING, read_ahead
from jaxem.types import Params, Result


@struct
class Pass:
    """What a pass over the stream reads besides the batches.

    Attributes:
        problem: in the coordinates of the computation; of its blocks only the total weight is left.
        affine: the change to these coordinates, or None.
        local_rounds: applications of `Model.local` to a batch.
    """

    problem: Problem
    affine: Any
    local_rounds: Array


@dataclasses.dataclass(frozen=True)
class Passes:
    """How passes are made.

    Attributes:
        stream: the batches.
        about: what every pass reads besides them.
        width: restarts whose E-steps are taken together.
        monitor: what looks on.
    """

    stream: Stream
    about: Pass
    width: int
    monitor: Monitor


def over_stream(race: Race, stream: Stream, affine: Any, local_rounds: Array) -> tuple[Race, Pass]:
    """A race to which a sample has given the starts, on the whole stream instead, and what every pass of it reads."""
    problem, options, restarts = race.problem, race.options, race.queue.restarts
    dtype, layout = problem.blocks.weight.dtype, race.layout
    if options.layout is None:
        layout = _layout(stream.size, problem, restarts.params, options)
    stream.arrange(layout.block_size)
    # The log-likelihood of a batch is in the data's own units: there is no offset to add later.
    left = Blocks(data=None, weight=jnp.full((1, 1), stream.total, dtype), labels=None, hard=problem.blocks.hard)
    total = jnp.asarray(stream.total, dtype)
    problem = dataclasses.replace(problem, blocks=left, offset=jnp.zeros((), dtype), total_weight=total)
    restarts = dataclasses.replace(restarts, local=None, began=None)
    if problem.model.local_constraints is not None:  # an accelerator remembers those of the sample
        memory = jax.vmap(lambda params: problem.algorithm.begin(problem, params))(restarts.params)
        restarts = dataclasses.replace(restarts, memory=memory)
    queue = dataclasses.replace(race.queue, restarts=restarts)
    about = Pass(problem, jax.tree.map(lambda x: jnp.asarray(x, dtype), affine), local_rounds)
    return dataclasses.replace(race, problem=problem, queue=queue, layout=layout, n=0), about


@partial(jax.jit, static_argnums=0)
def _layout(n: int, problem: Problem, starting: Params, options: Options) -> Layout:
    """For n rows like those of the sample."""
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape[2:]), x.dtype), problem.blocks.data)
    return lay_out(problem.model, jax.tree.map(lambda x: x[0], starting), whole, None, options, problem.blocks.hard)


def run_passes(passes: Passes, result: Callable[[Restart], Result], queue: Queue, stage: int) -> Queue:
    """Pass after pass until every restart in the queue stops or pauses, or the monitor says stop."""
    about, monitor = passes.about, passes.monitor
    while (on := np.asarray(_going(queue))).any():
        # Restarts that stopped take no part; widths are powers of two, so that few programs are compiled.
        count = min(len(on), 1 << (int(on.sum()) - 1).bit_length())
        index = jnp.asarray(np.argsort(~on, stable=True)[:count])
        chosen = take(queue.restarts, index)
        expectation = _one_pass(passes, chosen.proposal)
        if expectation is not None:
            restarts = put(queue.restarts, index, _advance(about.problem, chosen, expectation, jnp.asarray(on)[index]))
            queue = dataclasses.replace(queue, restarts=restarts)
        now = queue.restarts
        standing = Standing(now.objective, now.n_steps, now.status, _going(queue).any(), about.problem.max_steps)
        if not monitor.between(standing, state=queue, result=partial(result, queue.restarts), stage=stage):
            break
    return queue


def _going(queue: Queue) -> Array:
    """(R,) restarts in the queue that have steps to take."""
    listed = jnp.zeros(queue.restarts.status.shape, bool).at[queue.order].set(True)
    return listed & active(queue.restarts, queue.limit)


def _one_pass(passes: Passes, proposals: Params) -> Expectation | None:
    """The E-steps of all restarts over the whole stream, leaves (R, ...); None where it is over before the end."""
    sums = before = None
    with read_ahead(passes.stream.blocks(), WAITING) as pieces:
        for blocks in pieces:
            if passes.monitor.over():
                return None
            given = (passes.about, proposals, blocks, passes.width)
            sums = _add_e_steps(_nothing(*given) if sums is None else sums, *given)
            # Computation runs behind as reading runs ahead: by one batch, or memory would fill with waiting ones.
            jax.block_until_ready(before)
            before = sums[0].loglik
    return None if passes.monitor.over() else _total(sums)


def cold_e_step(
    model: Model, params: Params, blocks: Blocks, local_rounds: Array | int, convert: Callable[[PyTree], PyTree] = unchanged
) -> Expectation:
    """An E-step on data not seen before and not kept: per-datum parameters start cold, go round, and are dropped."""
    local = None
    if model.local:
        again = lambda _, local: update_local(model.centered(params), params, blocks, local, convert)  # noqa: E731
        local = jax.lax.fori_loop(1, local_rounds, again, again(0, None))
    return dataclasses.replace(e_step(model, params, blocks, local, convert), local=None)


def _e_steps(about: Pass, proposals: Params, blocks: Blocks, width: int) -> Expectation:
    """Of all restarts; data are changed to the coordinates of the computation, the log-likelihood is in their own."""
    model, affine, offset = about.problem.model, about.affine, jnp.zeros((), blocks.weight.dtype)
    blocks = dataclasses.replace(blocks, hard=about.problem.blocks.hard)
    convert = unchanged if affine is None else lambda data: rescaled_data(data, affine)
    if affine is not None:
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), blocks.data)
        lost = model.log_abs_det(rows, affine)
        weight = blocks.weight.reshape(-1) if jnp.ndim(lost) else blocks.weight.sum(1)
        offset = weighted_total(jnp.broadcast_to(lost, weight.shape).astype(offset.dtype), weight)

    def one(params: Params) -> Expectation:
        found = cold_e_step(model, params, blocks, about.local_rounds, convert)
        return dataclasses.replace(found, loglik=found.loglik + offset)

    return jax.lax.map(one, proposals, batch_size=width)


@partial(jax.jit, static_argnums=4)
def _add_e_steps(sums: PyTree, about: Pass, proposals: Params, blocks: Blocks, width: int) -> PyTree:
    return compensated_add(sums, _e_steps(about, proposals, blocks, width))


@partial(jax.jit, static_argnums=3)
def _nothing(about: Pass, proposals: Params, blocks: Blocks, width: int) -> PyTree:
    """What sums over batches begin with."""
    term = jax.eval_shape(partial(_e_steps, width=width), about, proposals, blocks)
    return (jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), term),) * 2


_total = jax.jit(lambda sums: jax.tree.map(jnp.subtract, *sums))
_advance = jax.jit(jax.vmap(advance, in_axes=(None, 0, 0, 0)))
