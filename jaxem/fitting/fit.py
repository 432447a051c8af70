"""`fit`: the boundary around the loop. Called plainly it checks, converts and standardizes; inside jit it composes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from jaxem.data.validation import check_positive_int, check_tolerance, is_traced
from jaxem.distributed import no_survivors, spans_processes, to_local_rows, together
from jaxem.engine.em import EM
from jaxem.engine.mesh import mesh_of
from jaxem.engine.problem import Algorithm
from jaxem.engine.regularizer import regularizer
from jaxem.engine.restarts import Rounds
from jaxem.engine.stop import Stop
from jaxem.fitting.checks import check_algorithm, check_init, check_key, check_model, checked, raise_if_all_failed
from jaxem.fitting.coordinates import cast, in_coordinates
from jaxem.fitting.layout import Layout, memory_limit
from jaxem.fitting.monitor import Monitor, Snapshot
from jaxem.fitting.rows import placed
from jaxem.fitting.solve import begin_jit, solve, solve_watched, trimmed
from jaxem.fitting.task import Options, Task
from jaxem.model import Model
from jaxem.numerics.blocks import float_dtype, n_rows
from jaxem.pytree import PyTree
from jaxem.storage.checkpoint import Checkpoint
from jaxem.types import Params, Result

#: Fields of a task that lead with N.
ROWS = ("data", "weight", "labels")


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
    stop: Stop = Stop(),  # noqa: B008
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
        stop: when it stops.
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
        progress: show a line that tells how the fit stands (needs pip install "jaxem[cli]"). This and the next three
            in plain calls only.
        checkpoint: directory, or a `jaxem.Checkpoint`, to save the fit in every half a minute, and to go on from:
            the same call made again resumes, on the CPU to the same bits. A directory of another fit is refused.
        max_seconds: time after which restarts that still run are INTERRUPTED, as by Ctrl-C: the result is the best so far.
            It is looked at about every .2 s, or after every step that takes longer.
        callback: called with a `jaxem.Snapshot` about every .2 s; returning True stops the fit likewise.

    Returns:
        A `Result`.

    Raises:
        ValueError: for input that no fit could use; the message names the argument.
        TypeError: for data that are not numeric, or a model that is not a registered dataclass.
        FitError: when every restart failed (called plainly only; inside jit the statuses tell).
    """
    check_model(model)
    check_init(model, init)
    check_algorithm(algorithm)
    n_restarts = check_positive_int(n_restarts, "n_restarts")
    if block_size is not None:
        block_size = check_positive_int(block_size, "block_size")
    for name in stop.__dataclass_fields__:
        check_tolerance(getattr(stop, name), f"stop.{name}")
    init = init.params if isinstance(init, Result) else init
    check_key(model, init, key)
    # A prior or penalty that is a function of the user's parameters must see them as they are.
    restrained = regularizer(penalty, log_prior, frozen, tied)
    standardize = standardize and not restrained.in_users_units and model.log_prior is None
    unroll = None if unroll is None else check_positive_int(unroll, "unroll", 0)
    mesh = mesh_of(mesh, data)
    monitor = Monitor(progress, checkpoint, max_seconds, callback, mesh)
    with jax.default_matmul_precision("highest"), no_survivors(mesh):
        traced = is_traced(model, data, key, init, weight, labels, algorithm, stop, max_steps, restrained, rounds)
        limit = memory_limit(None if traced else mesh)
        options = Options(n_restarts, block_size, rounds, restrained, unroll, limit, mesh=mesh)
        task = Task(model, data, weight, labels, init, key, algorithm, stop, max_steps, options)
        if traced and not monitor.idle:
            raise ValueError("progress, checkpoint, max_seconds and callback need a plain call of fit; got one inside jit")
        if traced:
            return fit_traced(task, standardize)
        with monitor:
            return fit_plainly(task, standardize, monitor)


def fit_traced(task: Task, standardize: bool) -> Result:
    """Inside jit: nothing is checked, everything composes."""
    data = jax.tree.map(jnp.asarray, task.data)
    dtype, n = float_dtype(data), n_rows(data)
    weight = None if task.weight is None else jnp.asarray(task.weight, dtype)
    init, max_steps = cast(task.init, dtype), jnp.asarray(task.max_steps)
    task = dataclasses.replace(task, data=data, weight=weight, init=init, max_steps=max_steps)
    task, _, back = in_coordinates(placed(task), standardize, traced=True)
    result = solve(task)
    return back(dataclasses.replace(result, local=jax.tree.map(lambda x: x[:n], result.local)))


def fit_plainly(task: Task, standardize: bool, monitor: Monitor, stream: Any = None) -> Result:
    """From the host; `stream`: what solves in place of `solve_watched`, and takes the change of coordinates too."""
    mesh = task.options.mesh
    with together(mesh):
        task = dataclasses.replace(task, **dict(zip(ROWS, to_local_rows([getattr(task, f) for f in ROWS]), strict=True)))
        task = given = checked(task)
        about = monitor.recall(task, standardize)
    task = placed(task)
    task, affine, back = in_coordinates(task, standardize, traced=False)
    model, options = task.model, task.options
    if stream is None and not spans_processes(mesh):  # this process has all the data
        model = model.prepared(given.data)
    if about is not None:  # memory may be scarcer now, but the bits must be the same
        options = dataclasses.replace(options, layout=Layout(**about["layout"]))
    task = dataclasses.replace(task, model=model, options=options, data=jax.tree.map(jnp.asarray, task.data))

    def finished(result: Result) -> Result:
        # Of several processes none holds all rows.
        return trimmed(dataclasses.replace(back(result), model=given.model), None if spans_processes(mesh) else given.n)

    arguments = (*begin_jit(task), task.n, options, monitor, finished)
    del task  # its data lie in the blocks now, and memory may be scarce
    result = solve_watched(*arguments) if stream is None else stream(*arguments, affine)
    raise_if_all_failed(result, given.data, given.weight)
    return result
