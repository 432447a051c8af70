"""Newton's method as an Optax transformation, for M-steps with few coordinates."""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxem.numerics.roots import backtracked


@functools.cache
def newton(halvings: int = 30) -> optax.GradientTransformationExtraArgs:
    """Newton steps with the whole Hessian, for small smooth problems: n coordinates cost n^2 memory, n^3 time.

    Curvature of the wrong sign is turned round, eigenvalue by eigenvalue, so that every step descends
    (Nocedal and Wright 2006, section 3.4); the step is halved until the loss falls enough. One object for all
    callers, so that it compiles nothing twice.

    Args:
        halvings: of one step at most; then the parameters stay where they are.

    Returns:
        An Optax transformation whose `update` asks for `value`, `grad` and `value_fn`, as `optax.lbfgs` does.
    """

    def update(updates: Any, state: optax.EmptyState, params: Any, *, value: Any, grad: Any, value_fn: Any, **_: Any):
        del updates
        at, unravel = ravel_pytree(params)
        slope = ravel_pytree(grad)[0]

        def loss(x):
            return value_fn(unravel(x))

        values, vectors = jnp.linalg.eigh(jax.hessian(loss)(at))
        eps = jnp.finfo(at.dtype).eps
        curvature = jnp.maximum(jnp.abs(values), eps * at.size * jnp.abs(values).max(initial=0))
        along = vectors.T @ slope
        # Where there is no curvature at all there is no Newton step either: the gradient's own.
        direction = -vectors @ jnp.where(curvature > 0, along / jnp.where(curvature > 0, curvature, 1), along)
        noise = 4 * eps * (1 + jnp.abs(value))

        def too_far(size):
            return ~(loss(at + size * direction) <= value + 1e-4 * size * jnp.vdot(slope, direction) + noise)

        size, still = backtracked(too_far, jnp.ones((), at.dtype), 0.5, 0.5**halvings)
        return unravel(jnp.where(still, 0, size) * direction), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), cast(Any, update))
