"""Laws of the whole loop: the objective rises, what a fit returns is of its parameters, sampled data refit."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.check.case import ROUNDING, Case, derived_expectation, flat_local, log_prob, one_block, quick_jit, rows_log_prob
from jaxem.check.report import Broken, compare, law, require
from jaxem.data.sequences import Sequences
from jaxem.engine import loop
from jaxem.engine.e_step import weighted_total
from jaxem.engine.em import EM
from jaxem.engine.m_step import log_prior
from jaxem.engine.problem import Problem
from jaxem.engine.stop import Stop
from jaxem.fitting import fit as fitting
from jaxem.numerics.blocks import n_rows
from jaxem.pytree import PyTree
from jaxem.types import FitError, Result, Status

#: EM maps in which the objective is watched.
STEPS = 20
#: EM maps after which a fit must have collapsed where it can, and the log-likelihood of a number that nothing else gains.
SPIKE_STEPS, SPIKE = 1_000, 2.0


@quick_jit
def _advance(problem: Problem, restart: loop.Restart) -> loop.Restart:
    return loop.step(problem, restart)


def _run(case: Case) -> tuple[loop.Restart, list[float]]:
    """A restart after `STEPS` EM maps, and its objectives; two laws look at it."""
    if "run" not in case.shared:
        case.shared["run"] = _run_afresh(case)
    return case.shared["run"]


def _run_afresh(case: Case) -> tuple[loop.Restart, list[float]]:
    blocks = one_block(case.data, case.weight)
    problem = Problem(
        model=case.model,
        blocks=blocks,
        algorithm=EM(),
        stop=Stop(loglik_rtol=None),
        max_steps=jnp.int32(STEPS + 1),
        offset=jnp.zeros((), case.dtype),
        total_weight=blocks.total_weight(),
    )
    restart = loop.new_restart(problem, case.params)
    values = []
    for _ in range(STEPS + 1):
        restart = _advance(problem, restart)
        status = Status(int(restart.status))
        require(
            status not in (Status.NONFINITE, Status.DECREASED),
            f"the objective must rise; step {len(values)} ends as {status.name} after the objectives {values[-3:]}",
        )
        values.append(float(restart.objective))
    return restart, values


@law("objective-rises")
def objective_rises(case: Case) -> None:
    """The objective never falls over 20 steps."""
    _, values = _run(case)
    slack = 100 * case.eps * (np.abs(values).max() + float(case.weight.sum()))
    falls = np.diff(values) < -slack
    require(not falls.any(), f"the objective must not fall; it falls at steps {np.flatnonzero(falls) + 1} of {values}")


@law("coherence")
def coherence(case: Case) -> None:
    """The log-likelihood and per-datum parameters of a running or finished fit are those of its parameters."""
    restart, _ = _run(case)
    local = flat_local(restart.local, case.n)
    loglik, _ = derived_expectation(case.model, restart.params, case.data, case.weight, local)
    own = rows_log_prob(case.model, restart.params, restart.params, case.data, local)
    size = float(case.weight @ (1 + jnp.abs(own)))
    bound = ROUNDING * case.eps * size
    compare(restart.loglik, loglik, bound, "loglik of a running fit against that of its params")
    wanted = loglik + log_prior(case.model, restart.params)
    compare(restart.objective, wanted, bound + _prior_bound(case, restart.params), "its objective")
    result = _fit(case, case.data, case.weight, 3)
    if case.model.local is None:
        own = log_prob(case.model, result.params, case.data)
    else:
        own = rows_log_prob(case.model, result.params, result.params, case.data, result.local)
    value = np.asarray(case.weight, np.float64) @ np.asarray(own, np.float64)
    bound = ROUNDING * case.eps * float(case.weight @ (1 + jnp.abs(own)))
    compare(result.loglik, value, bound, "loglik of a fit against the sum of log_prob at its params")
    prior = float(log_prior(case.model, result.params))
    compare(result.objective, value + prior, bound + _prior_bound(case, result.params), "objective of a fit at its params")


def _prior_bound(case: Case, params) -> float:
    return 10 * ROUNDING * case.eps * abs(float(log_prior(case.model, params)))


def _fit(case: Case, data, weight, max_steps: int) -> Result:
    try:
        return fitting.fit(case.model, data, init=case.params, weight=weight, max_steps=max_steps)
    except (FitError, ValueError, TypeError) as error:
        raise Broken(f"fit refuses what the model itself gave: {error}") from error


@law("spike")
def spike(case: Case) -> None:
    """A fit to one datum over and over, whose likelihood runs away, ends DEGENERATE."""
    if case.n == 1 and not isinstance(case.data, Sequences):
        return  # it is one datum, as it is
    data = _one_datum(case.data)
    before = float(weighted_total(log_prob(case.model, case.params, data), case.weight))
    try:
        result = _fit(case, data, case.weight, SPIKE_STEPS)
    except Broken:
        return  # refused, or said to have failed
    numbers = sum(x[0].size for x in jax.tree.leaves(data))
    gain = (float(result.loglik) - before) / (numbers * float(case.weight.sum()))
    # Probabilities never exceed one, and densities without a spike gain little.
    runs_away = float(result.loglik) > 0 and gain > SPIKE
    status = Status(int(result.status))
    require(
        not runs_away or status == Status.DEGENERATE,
        f"a fit to one datum over and over gains {gain:.3g} a number and must end DEGENERATE; got {status.name}: a density"
        " that collapses on data needs a floor, of which `at_floor` tells",
    )


def _one_datum(data: PyTree) -> PyTree:
    """Data of which each is like the first, and of sequences each step like the first step."""
    if isinstance(data, Sequences):
        x = jax.tree.map(lambda x: jnp.broadcast_to(x[:1, :1], x.shape), data.x)
        return dataclasses.replace(data, x=x)
    return jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), data)


@law("sampled-data-refit")
def sampled_data_refit(case: Case) -> None:
    """A short fit to data from the model rises, stays finite and ends well."""
    data = case.sample(case.n, 4)
    weight = np.ones(n_rows(data), case.dtype)
    result = _fit(case, data, weight, 10)
    status = Status(int(result.status))
    require(
        status in (Status.CONVERGED, Status.MAX_STEPS),
        f"a fit to {case.n} sampled data must end CONVERGED or MAX_STEPS; got {status.name}",
    )
    history = np.asarray(result.history, np.float64)
    slack = 100 * case.eps * (np.abs(history).max() + weight.sum())
    require(np.isfinite(history).all() and (np.diff(history) >= -slack).all(), f"its objective must rise; got {history}")
