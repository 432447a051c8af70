"""Online EM: parameters that follow a stream, one step a batch, each datum seen once (Cappe and Moulines 2009).

    state = jaxem.online.init(model, first_batch, key=key)
    for batch in batches:
        state = jaxem.online.update(state, batch)
    state.params, state.averaged

The state is a pytree of arrays: `update` is pure, works inside `jax.jit` and `jax.lax.scan`, and a state can be
stored leaf by leaf.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import init as starts
from jaxem.data.sequences import rescaled_data
from jaxem.data.validation import check_positive_int
from jaxem.engine.ascent import climb_by
from jaxem.engine.m_step import m_step
from jaxem.fitting.arguments import task_of
from jaxem.fitting.checks import check_model, check_rows_finite, checked
from jaxem.fitting.coordinates import in_coordinates
from jaxem.fitting.task import Task
from jaxem.model import Model
from jaxem.numerics.blocks import Blocks, n_rows, replace_absent
from jaxem.numerics.logs import divided
from jaxem.numerics.switches import own_switches
from jaxem.numerics.trees import all_finite, cast, tree_where
from jaxem.pytree import PyTree, struct
from jaxem.streams.batches import Stream
from jaxem.streams.passes import cold_e_step
from jaxem.streams.sources import WAITING, read_ahead
from jaxem.types import Params


@struct
class OnlineEM:
    """Settings of online EM: statistics <- (1 - rate) statistics + rate * those of the batch, then an M-step.

    Attributes:
        alpha: the rate of step t = 1, 2, ... is (t + t0)^-alpha, alpha in (1/2, 1]. Near 1/2 forgets the start
            sooner, and needs the averages to be as precise as near 1.
        t0: larger is more cautious at first.
        least_rate: the rate never falls below it: what a stream that drifts needs.
        warmup: steps before the first M-step, in which statistics gather at the starting parameters.
        n_data: data for which a prior counts once; None: those seen so far.
        local_rounds: for models with per-datum parameters: how often `Model.local` is applied to a batch.
    """

    alpha: float | Array = 0.6
    t0: float | Array = 2.0
    least_rate: float | Array = 0.0
    warmup: int | Array = 5
    n_data: float | Array | None = None
    local_rounds: int | Array = 10


@struct
class OnlineState:
    """Where online EM stands; statistics are means over data, about `current`.

    Attributes:
        model: in the coordinates of the computation.
        settings: the settings.
        original: the model as given.
        affine: the change to the coordinates of the computation, or None.
        current: parameters, in these coordinates.
        stats: statistics.
        older: mean of the statistics over the last half of the steps at least, over three quarters of them at most.
        recent: mean over the steps from which the next `older` is made.
        begun: int32, the step after which `older` begins.
        n_steps: int32, batches taken in.
        n_data: sum of their weights.
        n_skipped: int32, batches left out because their log-likelihood or statistics were not finite.
    """

    model: Model
    settings: OnlineEM
    original: Model
    affine: Any
    current: Params
    stats: PyTree
    older: PyTree
    recent: PyTree
    begun: Array
    n_steps: Array
    n_data: Array
    n_skipped: Array

    @property
    def params(self) -> Params:
        """Parameters after the last M-step."""
        return self._in_users_units(self.current)

    @property
    def averaged(self) -> Params:
        """Parameters from statistics averaged over the last half of the steps (Polyak and Ruppert): less noise, less speed."""
        return self._in_users_units(_maximized(self, self.older))

    def _in_users_units(self, params: Params) -> Params:
        return params if self.affine is None else self.original.rescale_params(params, self.affine.inverted())


def init(
    model: Model,
    batch: PyTree,
    *,
    key: Array | None = None,
    init: Any = None,
    weight: Any = None,
    settings: OnlineEM = OnlineEM(),  # noqa: B008
    standardize: bool = True,
) -> OnlineState:
    """A state at starting parameters, with the statistics of a first batch, from which starts and coordinates come.

    Args:
        model: the model. One whose local scores have no finite statistics (`Model.scores`) has nothing to average.
        batch: data as `jaxem.fit` takes them; a few hundred at least, or the start is poor.
        key: JAX random key, where the start is random.
        init: parameters, an earlier `Result`, a strategy of `jaxem.init`, or None for the model's own.
        weight: (n,) non-negative.
        settings: the settings.
        standardize: compute in coordinates in which this batch has unit scale, where the model offers them.

    Raises:
        TypeError: for a model without statistics that can be averaged.
        ValueError: for input that no fit could use.
    """
    check_model(model)
    if model.scores:
        raise TypeError(f"online EM needs a model with finite sufficient statistics; {type(model).__name__} has local scores")
    given = checked(task_of(model, batch, key=key, init=init, weight=weight, standardize=standardize))
    if given.weight is None:
        given = dataclasses.replace(given, weight=np.ones(given.n, given.dtype))
    elif model.missing is None:
        check_rows_finite(jax.tree.map(lambda x: np.asarray(x)[given.weight > 0], given.data))
    task, units = in_coordinates(given)
    task = dataclasses.replace(task, data=jax.tree.map(jnp.asarray, task.data))
    with own_switches():
        return _begin(task, settings, model, cast(units.affine, task.dtype))


@jax.jit
def _begin(task: Task, settings: OnlineEM, original: Model, affine: Any) -> OnlineState:
    model, init, weight, dtype = task.model, task.init, task.weight, task.dtype
    data = replace_absent(task.data, weight)
    if init is None:
        params = model.initialize(task.key, data, weight)
    elif isinstance(init, starts.Init):
        params = init.initialize(model, task.key, data, weight)
    else:
        params = init
    params = cast(jax.tree.map(jnp.asarray, params), dtype)
    _, stats = _mean_statistics(model, params, data, weight, settings.local_rounds)
    zero = jnp.int32(0)
    return OnlineState(
        model=model,
        settings=settings,
        original=original,
        affine=affine,
        current=params,
        stats=stats,
        older=stats,
        recent=stats,
        begun=jnp.maximum(jnp.asarray(settings.warmup, jnp.int32), 1),
        n_steps=zero,
        n_data=jnp.zeros((), dtype),
        n_skipped=zero,
    )


@jax.jit
def update(state: OnlineState, batch: PyTree, weight: Array | None = None) -> OnlineState:
    """One step: the batch's statistics are blended in, and after the warm-up an M-step follows.

    A batch whose statistics are not finite leaves everything as it is, and is counted in `n_skipped`.

    Args:
        state: where online EM stands.
        batch: data as `Model.validate` leaves them: arrays in the dtype of the computation. Every shape is compiled once.
        weight: (n,) non-negative, or None.
    """
    with own_switches():
        new, sound = _updated(state, batch, weight)
    new = tree_where(sound, new, state)
    return dataclasses.replace(new, n_skipped=new.n_skipped + ~sound)


def _updated(state: OnlineState, batch: PyTree, weight: Array | None) -> tuple[OnlineState, Array]:
    """The next state, and whether it is finite."""
    model, settings, dtype = state.model, state.settings, state.n_data.dtype
    data = cast(jax.tree.map(jnp.asarray, batch), dtype)
    weight = jnp.ones((n_rows(data),), dtype) if weight is None else jnp.asarray(weight, dtype)
    data = replace_absent(data, weight)
    data = data if state.affine is None else rescaled_data(data, state.affine)
    loglik, found = _mean_statistics(model, state.current, data, weight, settings.local_rounds)

    step, begun = state.n_steps + 1, state.begun
    number = lambda x: jnp.maximum(x, 1).astype(dtype)  # noqa: E731
    rate = jnp.maximum((number(step) + settings.t0) ** -settings.alpha, settings.least_rate)
    stats = _blend(state.stats, found, rate)
    # Means since `begun` and since twice that step: at four times it the second, then of the last half, becomes the first.
    older = _blend(state.older, stats, 1 / number(step - begun))
    recent = _blend(state.recent, stats, 1 / number(step - 2 * begun))
    turn = step >= 4 * begun
    blended = dataclasses.replace(
        state, stats=stats, older=tree_where(turn, recent, older), recent=recent,
        begun=jnp.where(turn, 2 * begun, begun), n_steps=step, n_data=state.n_data + weight.sum(),
    )  # fmt: skip
    params = tree_where(step > settings.warmup, _maximized(blended, stats), state.current)
    # Statistics are about the parameters at which they were taken: rather than lose digits, they move with them.
    about = model.centered(state.current)
    moved = {name: about.recentered(getattr(blended, name), params) for name in ("stats", "older", "recent")}
    return dataclasses.replace(blended, current=params, **moved), jnp.isfinite(loglik) & all_finite((found, params))


def _mean_statistics(model: Model, params: Params, data: PyTree, weight: Array, local_rounds: Any) -> tuple[Array, PyTree]:
    """Log-likelihood and statistics of a batch, per datum."""
    block = jax.tree.map(lambda x: x[None], Blocks(data, weight, None))
    found = cold_e_step(model, params, block, local_rounds)
    total = weight.sum()
    return found.loglik, jax.tree.map(lambda x: divided(x, total), found.stats)


def _blend(old: PyTree, new: PyTree, rate: Array) -> PyTree:
    return jax.tree.map(lambda o, n: (o + rate * (n - o)).astype(o.dtype), old, new)


def _maximized(state: OnlineState, stats: PyTree) -> Params:
    """M-step from mean statistics."""
    n = state.n_data if state.settings.n_data is None else jnp.asarray(state.settings.n_data, state.n_data.dtype)
    total = jnp.maximum(n, 1)
    whole = Blocks(data=None, weight=total[None, None], labels=None)
    return m_step(state.model, jax.tree.map(lambda x: n * x, stats), state.current, whole, None, climb_by(None, 100, total))


@struct
class Trace:
    """Mean held-out log-likelihood (or bound) of a datum on the way; each field (M,).

    Attributes:
        step: after how many steps.
        loglik: at the parameters of the last M-step.
        averaged: at those from averaged statistics.
    """

    step: Any
    loglik: Any
    averaged: Any


def run(
    state: OnlineState, batches: Any, *, n_passes: int = 1, held_out: PyTree = None, every: int = 100
) -> tuple[OnlineState, Trace]:
    """`update` for all batches of a source, which are checked on the way.

    Args:
        state: where to go on from.
        batches: as `jaxem.fit_stream` takes them; for a single pass an iterator will do.
        n_passes: passes over the source.
        held_out: data at which to report the log-likelihood, or None.
        every: steps from one report to the next; there is one at the end.

    Raises:
        BatchError: for a bad batch; the message names it.
    """
    once = isinstance(batches, Iterator) and check_positive_int(n_passes, "n_passes") == 1
    stream = Stream(state.original, (lambda: batches) if once else batches)
    held_out = None if held_out is None else jax.tree.map(jnp.asarray, state.original.validate(held_out))
    reports: list[tuple[int, Array, Array]] = []

    def report() -> None:
        if held_out is not None and (not reports or reports[-1][0] != int(state.n_steps)):
            reports.append((int(state.n_steps), *_scores(state, held_out)))

    for _ in range(n_passes):
        with read_ahead(stream.blocks(), WAITING) as pieces:
            for blocks in pieces:
                state = update(state, *jax.tree.map(lambda x: x[0], (blocks.data, blocks.weight)))
                if int(state.n_steps) % every == 0:
                    report()
    report()
    columns = zip(*reports, strict=True) if reports else ([], [], [])
    return state, Trace(*(np.array(column) for column in columns))


@jax.jit
def _scores(state: OnlineState, data: PyTree) -> tuple[Array, Array]:
    """Mean log-density at both kinds of parameters."""
    with own_switches():
        now, averaged = (state.original.log_prob(params, data).mean() for params in (state.params, state.averaged))
    return now, averaged
