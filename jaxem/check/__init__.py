"""`check_model`: the laws that every model must pass, the user's own included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
from jax import Array

from jaxem.check import data as of_data
from jaxem.check import density, e_step, engine, m_step
from jaxem.check.case import Case
from jaxem.check.report import Broken, Law, LawError, Report, Skip
from jaxem.fitting.checks import check_model as check_registered
from jaxem.model import Model
from jaxem.numerics.switches import own_switches
from jaxem.pytree import PyTree
from jaxem.types import Params

#: In this order, so that a defect is reported by the law that says most about it: whether the E-step is a
#: weighted sum, then of what, then whether that can be a log-likelihood, then what is made of it.
LAWS: tuple[Law, ...] = (
    density.finite_gradients,
    density.free_round_trip,
    density.posterior_rows,
    density.variants_agree,
    density.change_of_coordinates,
    of_data.additivity,
    of_data.weights_honoured,
    of_data.padding,
    of_data.weight_zero,
    of_data.weight_two,
    of_data.row_order,
    of_data.block_size,
    of_data.device_count,
    of_data.vmap_or_loop,
    of_data.jit_or_eager,
    e_step.fisher,
    e_step.matches_derived,
    e_step.loglik_is_sum,
    e_step.local,
    density.minorisation,
    density.mean_score,
    m_step.stationary,
    m_step.q_rises,
    m_step.feasible,
    engine.objective_rises,
    engine.coherence,
    engine.spike,
    engine.sampled_data_refit,
    e_step.louis,
    e_step.n_free_params,
    e_step.dtype,
)


def check_model(
    model: Model,
    data: PyTree,
    *,
    key: Array | None = None,
    params: Params | None = None,
    weight: Any = None,
    skip: Iterable[str] = (),
) -> Report:
    """Check the laws of expectation-maximization on a model: yours, or one of jaxem's.

    Takes about a minute, nearly all of it compilation: at most 200 rows are looked at. The laws are checked in the
    coordinates in which `fit` computes, in the dtype of `data`, at a generic point near the start.

    Args:
        model: the model.
        data: what `fit` takes; every leaf leads with N. With N = 1 the laws about rows are skipped.
        key: random key; None is `jax.random.key(0)`.
        params: where to look; None asks `model.initialize`.
        weight: (N,) non-negative, or None for all ones.
        skip: names of laws to leave out, e.g. "n-free-params" for a model that is knowingly not identified.

    Returns:
        A `Report`: the laws that ran, and the reason for each one skipped.

    Raises:
        LawError: at the first broken law, with its name as `law`.
        ValueError: for a name in `skip` that is no law.
    """
    check_registered(model)
    skip = set(skip)
    unknown = skip - {law.name for law in LAWS}
    if unknown:
        raise ValueError(f"skip must hold names of laws ({', '.join(law.name for law in LAWS)}); got {sorted(unknown)}")
    ran: list[str] = []
    skipped: dict[str, str] = {}
    with own_switches():
        case = Case(model, data, jax.random.key(0) if key is None else key, params, weight)
        for law in LAWS:
            if law.name in skip:
                skipped[law.name] = "left out by the caller"
                continue
            try:
                law.check(case)
            except Skip as reason:
                skipped[law.name] = str(reason)
            except Broken as broken:
                raise LawError(law.name, str(broken)) from None
            except Exception as error:
                error.add_note(f"while checking the law {law.name} of {type(model).__name__}")
                raise
            else:
                ran.append(law.name)
    return Report(type(model).__name__, str(case.dtype), ran, skipped)
