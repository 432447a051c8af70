"""When a restart stops: each criterion on one full EM map, and the guards against silent trouble."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxem import constraints as sets
from jaxem.numerics.trees import all_finite
from jaxem.pytree import PyTree, struct
from jaxem.types import Params, Status, StopReason


@struct
class Stop:
    """Stopping criteria; None or 0 never fires. They are numbers: changing one compiles nothing again.

    A log-likelihood tolerance does not certify parameters: EM may creep. Set `param_rtol` where they matter.

    Attributes:
        loglik_rtol: stops when |change of the objective| <= loglik_rtol * (1 + |objective|). Never tighter
            than four times the rounding unit of the data's dtype.
        loglik_atol: stops when |change of the objective| <= loglik_atol.
        param_rtol: stops when max |change of a parameter| / (1 + |parameter|) <= param_rtol, in the
            coordinates of the computation (standardized data for Gaussian families).
        param_atol: stops when the Euclidean norm of the change of all parameters <= param_atol, in the same
            coordinates; of a simplex all entries but the last count, of a symmetric matrix the lower triangle.
    """

    loglik_rtol: float | Array | None = 1e-8
    loglik_atol: float | Array | None = None
    param_rtol: float | Array | None = None
    param_atol: float | Array | None = None


def reason(
    stop: Stop, old: Array, new: Array, magnitude: Array, old_params: Params, params: Params, constraints: PyTree
) -> Array:
    """int32 `StopReason` for one EM map that took the objective from `old` to `new`."""
    change = jnp.abs(new - old)
    eps = jnp.finfo(new.dtype).eps
    fired = jnp.int32(StopReason.NONE)
    if stop.param_rtol is not None:
        moved = [
            jnp.max(jnp.abs(n - o) / (1 + jnp.abs(o)), initial=0)
            for n, o in zip(jax.tree.leaves(params), jax.tree.leaves(old_params), strict=True)
        ]
        met = (jnp.stack(moved).max() <= stop.param_rtol) & (stop.param_rtol > 0)
        fired = jnp.where(met, jnp.int32(StopReason.PARAM_RTOL), fired)
    if stop.param_atol is not None:
        moved = jax.tree.map(jnp.subtract, sets.to_affine(constraints, params), sets.to_affine(constraints, old_params))
        met = (optax.tree.norm(moved) <= stop.param_atol) & (stop.param_atol > 0)
        fired = jnp.where(met, jnp.int32(StopReason.PARAM_ATOL), fired)
    if stop.loglik_atol is not None:
        met = (change <= stop.loglik_atol) & (stop.loglik_atol > 0)
        fired = jnp.where(met, jnp.int32(StopReason.LOGLIK_ATOL), fired)
    if stop.loglik_rtol is not None:
        met = (change <= jnp.maximum(stop.loglik_rtol, 4 * eps) * (1 + jnp.abs(magnitude))) & (stop.loglik_rtol > 0)
        fired = jnp.where(met, jnp.int32(StopReason.LOGLIK_RTOL), fired)
    return fired


def trouble(old: Array, new: Array, magnitude: Array, params: Params, total_weight: Array, rounding: int = 100) -> Array:
    """int32 `Status`: RUNNING, or what is wrong with a step from objective `old` to `new`.

    `rounding` is the number of rounding units by which it may fall.
    """
    slack = rounding * jnp.finfo(new.dtype).eps * (jnp.abs(magnitude) + total_weight)
    status = jnp.where(new < old - slack, jnp.int32(Status.DECREASED), jnp.int32(Status.RUNNING))
    finite = jnp.isfinite(new) & all_finite(params)
    return jnp.where(finite, status, jnp.int32(Status.NONFINITE))
