"""`fit_stream`: exact EM on data larger than memory, by adding up the statistics of batches, one pass an iteration.

A streamed fit is the fit of a sample, from which it takes its starts and coordinates, with every E-step taken over
the stream instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.data.validation import check_positive_int
from jaxem.engine.em import EM
from jaxem.engine.loop import Restart
from jaxem.engine.problem import Algorithm
from jaxem.engine.restarts import Rounds
from jaxem.engine.stop import Stop, StopRule
from jaxem.fitting.arguments import described_by, task_of
from jaxem.fitting.checks import check_model, checked, raise_if_all_failed
from jaxem.fitting.coordinates import in_coordinates
from jaxem.fitting.fit import fit
from jaxem.fitting.monitor import Monitor, Snapshot
from jaxem.fitting.provenance import provenance
from jaxem.fitting.rows import placed
from jaxem.fitting.segments import race_watched
from jaxem.fitting.solve import started, trimmed, usable
from jaxem.fitting.task import Task
from jaxem.model import Model
from jaxem.numerics.switches import own_switches
from jaxem.storage.checkpoint import Checkpoint
from jaxem.streams.batches import Stream
from jaxem.streams.passes import Passes, over_stream, run_passes
from jaxem.types import Params, Result


@described_by(fit)
def fit_stream(
    model: Model,
    batches: Any,
    *,
    key: Array | None = None,
    init: Any = None,
    n_restarts: int = 1,
    algorithm: Algorithm = EM(),  # noqa: B008
    stop: StopRule | Sequence[StopRule] = Stop(),  # noqa: B008
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
        n_restarts: as in `fit`.
        algorithm: as in `fit`.
        stop: as in `fit`.
        max_steps: EM maps at most; there is one pass more than maps.
        block_size: as in `fit`.
        rounds: as in `fit`.
        penalty: as in `fit`.
        log_prior: as in `fit`.
        frozen: as in `fit`.
        tied: as in `fit`.
        standardize: compute in coordinates in which the sample has unit scale, where the model offers them.
        sample_size: data drawn, each with the same chance, for starts and coordinates; where there are fewer, all.
        local_rounds: for models with per-datum parameters, which are not kept from pass to pass: how often
            `Model.local` is applied to a batch, from a cold start. Too few, and the bound may fall near the optimum
            (status DECREASED).
        progress: show a line that tells how the fit stands (needs pip install "jaxem[cli]").
        checkpoint: as in `fit`.
            It is written between passes; a batch that raises leaves the last one as it is.
        max_seconds: time after which restarts that still run are INTERRUPTED, as by Ctrl-C: the result is the best so far.
            It is looked at after every batch, and a pass that is not done counts for nothing.
        callback: called with a `jaxem.Snapshot` after every pass; returning True stops the fit likewise.

    Returns:
        A `Result`, without `local`.

    Raises:
        TypeError: for a model that cannot be streamed, or a source that can be read only once.
        BatchError: for a batch that raises, differs in shape or dtype from the first, or holds what the model cannot
            take; the message names it, counted from 0.
        ValueError: for other input that no fit could use.
        FitError: when every restart failed.
    """
    given = dict(locals())
    check_model(model)
    if model.scores:
        wanted = "finite sufficient statistics, which add up over batches"
        raise TypeError(f"fit_stream needs a model with {wanted}; {type(model).__name__} has local scores (Model.scores)")
    task = task_of(
        model, None, key=key, init=init, n_restarts=n_restarts, algorithm=algorithm, stop=stop, max_steps=max_steps,
        block_size=block_size, rounds=rounds, penalty=penalty, log_prior=log_prior, frozen=frozen, tied=tied,
        standardize=standardize,
    )  # fmt: skip
    monitor = Monitor(progress, checkpoint, max_seconds, callback)
    stream = Stream(model, batches)
    sample, weight = stream.survey(check_positive_int(sample_size, "sample_size"))
    rounds_of_local = jnp.int32(check_positive_int(local_rounds, "local_rounds"))
    task = dataclasses.replace(task, data=sample, weight=weight)
    with own_switches(), monitor:
        result = _fit_stream(task, stream, rounds_of_local, monitor)
    return dataclasses.replace(result, provenance=provenance(fit_stream, given, result, monitor.about.get("layout")))


def _fit_stream(task: Task, stream: Stream, local_rounds: Array, monitor: Monitor) -> Result:
    """The way of `jaxem.fitting.fit.fit_plainly` with the sample, but for the race, which is run over the stream."""
    given = monitor.recalled(checked(task))
    task, units = in_coordinates(placed(given))

    def ended(restarts: Restart) -> Result:
        return trimmed(usable(race, restarts, units))

    race, about = over_stream(started(task), stream, units.affine, local_rounds)
    passes = Passes(stream, about, race.layout.width, monitor)
    result = ended(race_watched(race, monitor, partial(run_passes, passes, ended)))
    raise_if_all_failed(result, given.data, given.weight)
    return result
