"""`fit`: from a call to a result. Called plainly it checks, converts and standardizes; inside jit it composes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from jaxem.distributed import no_survivors, spans_processes, together
from jaxem.engine.em import EM
from jaxem.engine.problem import Algorithm
from jaxem.engine.restarts import Rounds
from jaxem.engine.stop import Stop, StopRule
from jaxem.fitting.arguments import task_of
from jaxem.fitting.checks import checked, converted, raise_if_all_failed
from jaxem.fitting.coordinates import in_coordinates
from jaxem.fitting.monitor import Monitor, Snapshot
from jaxem.fitting.provenance import provenance
from jaxem.fitting.rows import on_host, placed
from jaxem.fitting.solve import solve, solve_watched, started
from jaxem.fitting.task import Task
from jaxem.model import Model
from jaxem.numerics.switches import own_switches
from jaxem.pytree import PyTree
from jaxem.storage.checkpoint import Checkpoint
from jaxem.types import Params, Result


def fit(
    model: Model,
    data: PyTree,
    *,
    key: Array | None = None,
    init: Any = None,
    n_restarts: int = 1,
    weight: Any = None,
    labels: Any = None,
    algorithm: Algorithm = EM(),  # noqa: B008
    stop: StopRule | Sequence[StopRule] = Stop(),  # noqa: B008
    max_steps: int | Array = 10_000,
    block_size: int | None = None,
    rounds: Rounds | None = None,
    penalty: Any = None,
    log_prior: Callable[[Params], Array] | None = None,
    frozen: Any = None,
    tied: Any = None,
    standardize: bool = True,
    unroll: int | None = None,
    mesh: Mesh | None = None,
    guard: bool = False,
    progress: bool = False,
    checkpoint: Checkpoint | str | Path | None = None,
    max_seconds: float | None = None,
    callback: Callable[[Snapshot], Any] | None = None,
) -> Result:
    """Fit a latent-variable model by Expectation-Maximization.

    Works inside `jax.jit` and `jax.vmap`, over keys, data sets and weights. Called plainly it first checks
    its input. It is compiled once for each model structure and shape of data.

    Inside jit the parameters, log-likelihood and objective can be differentiated with respect to data, weights,
    and the numbers in priors, penalties and the model, by the implicit function theorem (see
    `jaxem.engine.implicit`). That is right only where the parameters converged: set `Stop(param_rtol=...)` and
    read `result.params_converged`.

    Args:
        model: the model.
        data: array-like, or a pytree of arrays whose leaves lead with N.
        key: JAX random key of either style; restart i depends on (key, i) alone.
        init: parameters, an earlier `Result`, a strategy of `jaxem.init`, or None for the model's own.
        n_restarts: R, number of restarts.
        weight: (N,) non-negative; 0 is absent, whatever the row holds, 2 is twice. None for all ones.
        labels: (N,) integers, known latent values, -1 for unknown.
        algorithm: how a restart moves.
        stop: when it stops: a `jaxem.Stop`, a rule of your own (`jaxem.StopRule`), or several, of which the first to
            fire stops it.
        max_steps: EM maps at most.
        block_size: rows of one block of the E-step; None chooses from shapes and backend.
        rounds: drop hopeless restarts early instead of finishing every one.
        penalty: function of the parameters taken off the objective, or several: `jaxem.L1` on named leaves gives
            exact zeros. A plain function's identity is compiled; numbers in a `jax.tree_util.Partial` or a
            registered dataclass are not.
        log_prior: function of the parameters added to the objective, beside the model's own priors.
        frozen: leaves that keep their starting values: dotted names, or a prefix tree of bools.
        tied: leaves that share one value: groups of dotted names, or a prefix tree of labels.
        standardize: compute in coordinates in which the data have unit scale, where the model offers
            them, and map the parameters back.
        unroll: exactly this many EM maps in a scan that reverse-mode differentiation goes through step by
            step, instead of a loop and the implicit derivative. For closed M-steps.
        mesh: devices over which the rows of data are shared out, and restarts along an axis named "restarts" where it
            has one. None: those over which the data already lie; inside jit it must be given. In several processes
            `data`, `weight` and `labels` are each process's own rows, and the result is the same in all.
        guard: pass over restarts in which a component owes its likelihood to chance (see `jaxem.select`, which does so):
            they win only where nothing else is left. False: the highest objective wins.
        progress: show a line that tells how the fit stands (needs pip install "jaxem[cli]"). This and the next three
            in plain calls only.
        checkpoint: directory, or a `jaxem.Checkpoint`, to save the fit in every half a minute, and to go on from:
            the same call made again resumes, on the CPU to the same bits. A directory of another fit is refused: what
            functions of your own read counts too, and what of it cannot be followed is refused by name.
        max_seconds: time after which restarts that still run are INTERRUPTED, as by Ctrl-C: the result is the best so far.
            It is looked at about every .2 s, or after every step that takes longer.
        callback: called with a `jaxem.Snapshot` about every .2 s; returning True stops the fit likewise.

    Returns:
        A `Result`.

    Raises:
        ValueError: for input that no fit could use; the message names the argument.
        TypeError: for data that are not numeric, or a model that is not a registered dataclass.
        OSError: for a checkpoint's directory that cannot be written to, before the fit. A disk that is full later costs
            the checkpoint, with a warning, and not the fit.
        FitError: when every restart failed (called plainly only; inside jit the statuses tell).
    """
    given = dict(locals())
    task = task_of(
        model, data, key=key, init=init, n_restarts=n_restarts, weight=weight, labels=labels, algorithm=algorithm,
        stop=stop, max_steps=max_steps, block_size=block_size, rounds=rounds, penalty=penalty, log_prior=log_prior,
        frozen=frozen, tied=tied, standardize=standardize, unroll=unroll, mesh=mesh, guard=guard,
    )  # fmt: skip
    monitor = Monitor(progress, checkpoint, max_seconds, callback, task.options.mesh)
    if task.traced and not monitor.idle:
        raise ValueError("progress, checkpoint, max_seconds and callback need a plain call of fit; got one inside jit")
    with own_switches(), no_survivors(task.options.mesh):
        if task.traced:
            return fit_traced(task)
        with monitor:
            result = fit_plainly(task, monitor)
    return dataclasses.replace(result, provenance=provenance(fit, given, result, monitor.about.get("layout")))


def fit_traced(task: Task) -> Result:
    """Inside jit: nothing is checked, everything composes."""
    given = converted(task)
    task, units = in_coordinates(placed(given))
    result = solve(task, units)
    return units.back(dataclasses.replace(result, local=jax.tree.map(lambda x: x[: given.n], result.local)))


def fit_plainly(task: Task, monitor: Monitor) -> Result:
    """From the host: checked, placed on devices, in coordinates, solved under the monitor's eyes, back in the user's units."""
    several = spans_processes(task.options.mesh)  # of which none holds all rows
    with together(task.options.mesh):
        given = monitor.recalled(checked(on_host(task)))
    task, units = in_coordinates(placed(given))
    if not several:
        task = dataclasses.replace(task, model=task.model.prepared(given.data))

    race = started(task)
    del task  # its data lie in the blocks now, and memory may be scarce
    result = solve_watched(race, monitor, units, None if several else given.n)
    raise_if_all_failed(result, given.data, given.weight)
    return result
