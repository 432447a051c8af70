"""Gradients through a fit: the derivative of a stationary point, not of the steps that led there.

At the end of a fit the gradient g(u) of the objective in free coordinates u vanishes. Where the data, weights,
priors or penalties change, u follows: du = -H^-1 dg, with H the Hessian of the objective (implicit function
theorem). It asks nothing of the M-step, which need not be differentiable, and H is symmetric.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P

from jaxem import constraints as sets
from jaxem.engine.e_step import block_rows, weighted_total
from jaxem.engine.mesh import on_devices
from jaxem.engine.problem import Problem, objective
from jaxem.numerics.blocks import fold
from jaxem.pytree import PyTree
from jaxem.types import Params, Result

#: Free coordinates up to which the Hessian is formed and factorised; beyond it products with it are enough.
DENSE = 256


def loglik_function(problem: Problem, center: Params) -> Callable[[Problem, Params], Array]:
    """(problem, params) -> log-likelihood, differentiable in both to any order; statistics are taken about `center`."""
    center = jax.lax.stop_gradient(center)

    def loglik(problem: Problem, params: Params) -> Array:
        return on_devices(problem, summed, (P(), P()), P())(center, params)

    def summed(problem: Problem, center: Params, params: Params) -> Array:
        model = problem.model.exact(center)
        packed = model.pack(model.natural(params))

        def term(block: Any) -> Array:
            rows = block_rows(model, params, block, None)
            return weighted_total(model.log_marginal(packed, block.data, rows), block.weight)

        return problem.blocks.over_devices(fold(jax.checkpoint(term), problem.blocks))

    return loglik


def attached(problem: Problem, result: Result) -> Result:
    """`result` with the derivatives of its parameters, log-likelihood and objective in all that `problem` holds.

    Its values stay as they are, and nothing is computed unless someone differentiates. Where the parameters
    have not converged, these are the derivatives of no stationary point.
    """
    if problem.model.local is not None:
        return dataclasses.replace(result, params=_refuse(problem.blocks.data, result.params))
    params = _stationary(problem, result.params)
    value = loglik_function(problem, params)(problem, params)
    return dataclasses.replace(
        result,
        params=jax.tree.map(_with_tangent, result.params, params),
        loglik=_with_tangent(result.loglik, value + problem.offset),
        objective=_with_tangent(result.objective, objective(problem, params, value) + problem.offset),
    )


def _stationary(problem: Problem, params: Params) -> Params:
    constraints = problem.constraints(params)
    start, unravel = ravel_pytree(sets.to_free(constraints, params))
    loglik = loglik_function(problem, params)

    def at(free: Array) -> Params:
        return problem.regularizer.shared(sets.from_free(constraints, unravel(free), params))

    def slope(free: Array) -> Array:
        return jax.grad(lambda free: objective(problem, at(free), loglik(problem, at(free))))(free)

    def tangent_solve(curvature: Callable[[Array], Array], right: Array) -> Array:
        return jax.lax.custom_linear_solve(curvature, right, _solved, symmetric=True)

    return at(jax.lax.custom_root(slope, start, lambda _, initial: initial, tangent_solve))


def _solved(curvature: Callable[[Array], Array], right: Array) -> Array:
    """x with curvature(x) = right, for a symmetric operator; coordinates without curvature do not move."""
    if right.size <= DENSE:
        matrix = jax.vmap(curvature, out_axes=1)(jnp.eye(right.size, dtype=right.dtype))
        dead = (matrix == 0).all(1)  # structural zeros, leaves that follow others
        matrix = matrix + jnp.diag(dead.astype(right.dtype))
        return jnp.where(dead, 0, jnp.linalg.solve(matrix, right))
    tolerance = float(jnp.finfo(right.dtype).eps) ** 0.75
    return jax.scipy.sparse.linalg.gmres(curvature, right, tol=tolerance, restart=50, maxiter=20)[0]


@jax.custom_jvp
def _with_tangent(value: Array, other: Array) -> Array:
    """`value` with the derivative of `other`."""
    del other
    return value


@_with_tangent.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[1]


@jax.custom_jvp
def _refuse(data: PyTree, params: Params) -> Params:
    del data
    return params


@_refuse.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise TypeError(
        "a fit of a model with per-datum parameters (`Model.local`) has no implicit derivative: its stationary "
        "point is a pair; unroll the fit instead"
    )
