"""Laws of the M-step: it maximises where it claims to, never lowers q, and stays in the constraints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.check.case import ROUNDING, Case, Expected, chart, q_of, quick_jit
from jaxem.check.report import Skip, law, require
from jaxem.model import Model
from jaxem.types import Params


@law("m-step-stationary")
def stationary(case: Case) -> None:
    """The gradient of q vanishes at a closed M-step that claims the maximum."""
    model = case.model
    about = model.centered(case.params)
    if about.m_step is None:
        raise Skip("the model has no closed M-step")
    if model.log_prior is not None and not model.m_step_has_prior:
        raise Skip("with a log_prior the M-step is left to Optax")
    if not model.m_step_is_maximum:
        raise Skip("m_step does not claim the maximum")
    if bool(model.degenerate(case.after)):
        raise Skip("the M-step ends at a floor, where the gradient need not vanish")
    mask = jax.tree.map(lambda m, sub: jax.tree.map(lambda _: m, sub), about.without_closed_form, case.params)
    free = sets.to_free(model.constraints, case.after)
    closed = np.concatenate([np.full(x.size, not m) for x, m in zip(jax.tree.leaves(free), jax.tree.leaves(mask), strict=True)])
    gradient, curvature = (np.asarray(x, np.float64) for x in _slope(model, case.expected, case.after))
    # A gradient that rounding leaves moves the maximum by gradient / curvature: four digits of eps are allowed.
    total = float(case.weight.sum())
    bound = 10 * ROUNDING * case.eps * (np.abs(curvature) + 1e-2 * total)
    # A coordinate at infinity (a rate of zero) is at its bound.
    inside = closed & np.isfinite(np.asarray(chart(model, case.after)[0]))
    excess = np.where(inside, np.abs(gradient) / bound, 0)
    worst = int(np.argmax(np.where(np.isnan(excess), np.inf, excess))) if excess.size else 0
    require(
        not excess.size or excess[worst] <= 1,
        f"the gradient of q after m_step must vanish; in free coordinate {worst} it is {gradient[worst]:.6g}, allowed"
        f" {bound[worst]:.2g}: the maximum lies about {-gradient[worst] / curvature[worst]:.3g} away",
    )


@quick_jit
def _slope(model: Model, at: Expected, after: Params) -> tuple[Array, Array]:
    """(P,) first and second derivatives of q at `after`, in free coordinates."""
    q = q_of(model, at)
    vector, back = chart(model, after)
    gradient = jax.grad(lambda v: q(back(v)))
    return gradient(vector), jnp.diagonal(jax.jacrev(gradient)(vector))


@law("q-rises")
def q_rises(case: Case) -> None:
    """The value of q does not fall at an M-step."""
    before, after = map(float, _q_values(case.model, case.expected, case.after))
    # As the engine's own guard against a fall.
    slack = 100 * case.eps * (abs(before) + float(case.weight.sum()))
    require(after >= before - slack, f"q must not fall at an M-step; it falls from {before:.9g} to {after:.9g}")


@quick_jit
def _q_values(model: Model, at: Expected, after: Params) -> tuple[Array, Array]:
    q = q_of(model, at)
    return q(at.params), q(after)


@law("m-step-feasible")
def feasible(case: Case) -> None:
    """New parameters lie in their constraints, in the shapes and dtypes of the old ones."""
    try:
        sets.check(case.model.constraints, case.after, "m_step")
    except ValueError as error:
        require(False, str(error))
    shapes = [jax.tree.map(lambda x: (x.shape, str(x.dtype)), p) for p in (case.params, case.after)]
    require(shapes[0] == shapes[1], f"m_step must keep shapes and dtypes {shapes[0]}; got {shapes[1]}")
