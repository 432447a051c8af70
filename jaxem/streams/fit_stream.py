"""`fit_stream`: exact EM on data larger than memory, by adding up the statistics of batches, one pass an iteration.

A streamed fit is the fit of a sample, from which it takes its starts and coordinates, with every E-step taken over
the stream instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.validation import check_positive_int, check_tolerance
from jaxem.engine.e_step import Expectation, e_step, unchanged, update_local, weighted_total
from jaxem.engine.em import EM
from jaxem.engine.loop import Restart, advance
from jaxem.engine.problem import Algorithm, Problem
from jaxem.engine.regularizer import regularizer
from jaxem.engine.restarts import Queue, Rounds, active, put, take
from jaxem.engine.stop import Stop
from jaxem.fitting.checks import check_algorithm, check_init, check_key, check_model
from jaxem.fitting.fit import fit_plainly
from jaxem.fitting.layout import Layout, lay_out, memory_limit
from jaxem.fitting.monitor import Monitor, Snapshot
from jaxem.fitting.segments import Standing, race_watched, resumed
from jaxem.fitting.solve import end_jit
from jaxem.fitting.task import Options, Task
from jaxem.model import Model
from jaxem.numerics.blocks import Blocks
from jaxem.numerics.trees import compensated_add
from jaxem.pytree import PyTree, struct
from jaxem.storage.checkpoint import Checkpoint
from jaxem.streams.batches import Stream
from jaxem.streams.sources import WAITING, read_ahead
from jaxem.types import Params, Result


def fit_stream(
    model: Model,
    batches: Any,
    *,
    key: Array | None = None,
    init: Any = None,
    n_restarts: int = 1,
    algorithm: Algorithm = EM(),  # noqa: B008
    stop: Stop = Stop(),  # noqa: B008
    max_steps: int = 10_000,
    block_size: int | None = None,
    rounds: Rounds | None = None,
    penalty: Any = None,
    log_prior: Callable[[Params], Array] | None = None,
    frozen: Any = None,
    tied: Any = None,
    standardize: bool = True,
    sample_size: int = 50_000,
    local_rounds: int = 10,
    progress: bool = False,
    checkpoint: Checkpoint | str | Path | None = None,
    max_seconds: float | None = None,
    callback: Callable[[Snapshot], Any] | None = None,
) -> Result:
    """Fit a model by Expectation-Maximization to data that do not fit in memory.

    Every iteration is one pass over the source, in which all restarts that still run share each batch; the result is
    that of `fit` on all the data at once, up to rounding. A first pass checks the data, adds up their weights and
    draws the sample that starts and coordinates come from. Memory holds the sample and a few batches. Batches are
    read, checked and padded by a thread that runs ahead.

    Args:
        model: the model. One whose local scores have no finite statistics (`Model.scores`) cannot be streamed.
        batches: a source of `jaxem.sources`, an array (`numpy.memmap`), anything that can be iterated over again and
            again, or a function that returns an iterator. A batch is data as `fit` takes them, or a pair (data,
            weight). Batches may differ in length: the first one's is what is compiled, longer ones are cut.
        key: JAX random key; restart i depends on (key, i) and the sample alone.
        init: as in `fit`.
        n_restarts: R, number of restarts.
        algorithm: how a restart moves.
        stop: when it stops.
        max_steps: EM maps at most; there is one pass more than maps.
        block_size: rows of one block of the E-step; None chooses.
        rounds: drop hopeless restarts early.
        penalty: as in `fit`.
        log_prior: as in `fit`.
        frozen: as in `fit`.
        tied: as in `fit`.
        standardize: compute in coordinates in which the sample has unit scale, where the model offers them.
        sample_size: data drawn, each with the same chance, for starts and coordinates; where there are fewer, all.
        local_rounds: for models with per-datum parameters, which are not kept from pass to pass: how often
            `Model.local` is applied to a batch, from a cold start. Too few, and the bound may fall near the optimum
            (status DECREASED).
        progress: show a line that tells how the fit stands, as in `fit`.
        checkpoint: as in `fit`; written between passes. A batch that raises leaves the last one as it is.
        max_seconds: as in `fit`; looked at after every batch, and a pass that is not done counts for nothing.
        callback: as in `fit`, called after every pass.

    Returns:
        A `Result`, without `local`.

    Raises:
        TypeError: for a model that cannot be streamed, or a source that can be read only once.
        BatchError: for a batch that raises, differs in shape or dtype from the first, or holds what the model cannot
            take; the message names it, counted from 0.
        ValueError: for other input that no fit could use.
        FitError: when every restart failed.
    """
    check_model(model)
    check_init(model, init)
    check_algorithm(algorithm)
    if model.scores:
        wanted = "finite sufficient statistics, which add up over batches"
        raise TypeError(f"fit_stream needs a model with {wanted}; {type(model).__name__} has local scores (Model.scores)")
    for name in stop.__dataclass_fields__:
        check_tolerance(getattr(stop, name), f"stop.{name}")
    init = init.params if isinstance(init, Result) else init
    check_key(model, init, key)
    restrained = regularizer(penalty, log_prior, frozen, tied)
    standardize = standardize and not restrained.in_users_units and model.log_prior is None
    block_size = None if block_size is None else check_positive_int(block_size, "block_size")
    n_restarts = check_positive_int(n_restarts, "n_restarts")
    options = Options(n_restarts, block_size, rounds, restrained, memory_limit=memory_limit())
    monitor = Monitor(progress, checkpoint, max_seconds, callback)

    stream = Stream(model, batches)
    sample, weight = stream.survey(check_positive_int(sample_size, "sample_size"))
    solve = partial(_solve, stream, jnp.int32(check_positive_int(local_rounds, "local_rounds")))
    task = Task(model, sample, weight, None, init, key, algorithm, stop, max_steps, options)
    with jax.default_matmul_precision("highest"), monitor:
        return fit_plainly(task, standardize, monitor, solve)


@struct
class _Pass:
    """What a pass over the stream reads besides the batches.

    Attributes:
        problem: in the coordinates of the computation; of its blocks only the total weight is left.
        affine: the change to these coordinates, or None.
        local_rounds: applications of `Model.local` to a batch.
    """

    problem: Problem
    affine: Any
    local_rounds: Array


def _solve(stream, local_rounds, problem, queue, layout, n, options, monitor, finished, affine) -> Result:
    """What `fit` does with all its data, done with the stream, once the sample has given the starts."""
    del n
    dtype = problem.blocks.weight.dtype
    if options.layout is None:
        layout = _layout(stream.size, problem, queue.restarts.params, options)
    stream.arrange(layout.block_size)
    # The log-likelihood of a batch is in the data's own units: there is no offset to add later.
    left = Blocks(data=None, weight=jnp.full((1, 1), stream.total, dtype), labels=None, hard=problem.blocks.hard)
    total = jnp.asarray(stream.total, dtype)
    problem = dataclasses.replace(problem, blocks=left, offset=jnp.zeros((), dtype), total_weight=total)
    about = _Pass(problem, jax.tree.map(lambda x: jnp.asarray(x, dtype), affine), local_rounds)
    restarts = dataclasses.replace(queue.restarts, local=None, began=None)
    if problem.model.local_constraints is not None:  # an accelerator remembers those of the sample
        memory = jax.vmap(lambda params: problem.algorithm.begin(problem, params))(restarts.params)
        restarts = dataclasses.replace(restarts, memory=memory)
    queue = dataclasses.replace(queue, restarts=restarts)

    def ended(restarts: Restart) -> Result:
        return finished(end_jit(problem, restarts, 0))

    def run(queue: Queue, stage: int) -> Queue:
        return _run_passes(stream, about, queue, layout.width, monitor, stage, ended)

    monitor.about["layout"] = dataclasses.asdict(layout)
    queue, stage = resumed(queue, layout.width, options.rounds, monitor)
    return ended(race_watched(queue, layout.width, options.rounds, monitor, run, stage))


@partial(jax.jit, static_argnums=0)
def _layout(n: int, problem: Problem, starting: Params, options: Options) -> Layout:
    """For n rows like those of the sample."""
    whole = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape[2:]), x.dtype), problem.blocks.data)
    return lay_out(problem.model, jax.tree.map(lambda x: x[0], starting), whole, None, options, problem.blocks.hard)


def _run_passes(
    stream: Stream, about: _Pass, queue: Queue, width: int, monitor: Monitor, stage: int, result: Callable[[Restart], Result]
) -> Queue:
    """Pass after pass until every restart in the queue stops or pauses, or the monitor says stop."""
    while (on := np.asarray(_going(queue))).any():
        # Restarts that stopped take no part; widths are powers of two, so that few programs are compiled.
        count = min(len(on), 1 << (int(on.sum()) - 1).bit_length())
        index = jnp.asarray(np.argsort(~on, stable=True)[:count])
        chosen = take(queue.restarts, index)
        expectation = _one_pass(stream.blocks(), about, chosen.proposal, width, monitor.over)
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


def _one_pass(
    batches: Iterator[Blocks], about: _Pass, proposals: Params, width: int, over: Callable[[], bool]
) -> Expectation | None:
    """The E-steps of all restarts over the whole stream, leaves (R, ...); None where it is over before the end."""
    sums = before = None
    with read_ahead(batches, WAITING) as pieces:
        for blocks in pieces:
            if over():
                return None
            given = (about, proposals, blocks)
            sums = _add_e_steps(_nothing(*given, width) if sums is None else sums, *given, width)
            # Computation runs behind as reading runs ahead: by one batch, or memory would fill with waiting ones.
            jax.block_until_ready(before)
            before = sums[0].loglik
    return None if over() else _total(sums)


def cold_e_step(
    model: Model, params: Params, blocks: Blocks, local_rounds: Array | int, convert: Callable[[PyTree], PyTree] = unchanged
) -> Expectation:
    """An E-step on data not seen before and not kept: per-datum parameters start cold, go round, and are dropped."""
    local = None
    if model.local:
        again = lambda _, local: update_local(model.centered(params), params, blocks, local, convert)  # noqa: E731
        local = jax.lax.fori_loop(1, local_rounds, again, again(0, None))
    return dataclasses.replace(e_step(model, params, blocks, local, convert), local=None)


def _e_steps(about: _Pass, proposals: Params, blocks: Blocks, width: int) -> Expectation:
    """Of all restarts; data are changed to the coordinates of the computation, the log-likelihood is in their own."""
    model, affine, volume = about.problem.model, about.affine, jnp.zeros((), blocks.weight.dtype)
    blocks = dataclasses.replace(blocks, hard=about.problem.blocks.hard)
    convert = unchanged if affine is None else lambda data: model.rescale_data(data, affine)
    if affine is not None:
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), blocks.data)
        lost = model.log_abs_det(rows, affine)
        weight = blocks.weight.reshape(-1) if jnp.ndim(lost) else blocks.weight.sum(1)
        volume = weighted_total(jnp.broadcast_to(lost, weight.shape).astype(volume.dtype), weight)

    def one(params: Params) -> Expectation:
        found = cold_e_step(model, params, blocks, about.local_rounds, convert)
        return dataclasses.replace(found, loglik=found.loglik + volume)

    return jax.lax.map(one, proposals, batch_size=width)


@partial(jax.jit, static_argnums=4)
def _add_e_steps(sums: PyTree, about: _Pass, proposals: Params, blocks: Blocks, width: int) -> PyTree:
    return compensated_add(sums, _e_steps(about, proposals, blocks, width))


@partial(jax.jit, static_argnums=3)
def _nothing(about: _Pass, proposals: Params, blocks: Blocks, width: int) -> PyTree:
    """What sums over batches begin with."""
    term = jax.eval_shape(partial(_e_steps, width=width), about, proposals, blocks)
    return (jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), term),) * 2


_total = jax.jit(lambda sums: jax.tree.map(jnp.subtract, *sums))
_advance = jax.jit(jax.vmap(advance, in_axes=(None, 0, 0, 0)))
