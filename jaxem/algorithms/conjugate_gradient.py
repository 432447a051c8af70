"""EM accelerated by conjugate gradients: the EM step is the preconditioned gradient (Jamshidian and Jennrich 1993)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from jaxem import constraints as sets
from jaxem.algorithms.jump import Accelerator, State
from jaxem.engine.em import EM
from jaxem.engine.problem import Algorithm, Move, Point, Problem, expected_objective
from jaxem.numerics.trees import tree_where
from jaxem.pytree import PyTree, struct
from jaxem.types import Params

#: Points tried along a direction before it is given up.
TRIES = 4


@struct
class Search:
    """Memory of `ConjugateGradient`.

    Attributes:
        base: (P,) where the line search started.
        gradient: (P,) of the objective there.
        direction: (P,) searched.
        length: step length of the point now evaluated.
        tries: int32, points tried along the direction; 0 for the EM map.
        fallback: EM map of the last point accepted.
        inner: memory of the algorithm that maps.
    """

    base: Array
    gradient: Array
    direction: Array
    length: Array
    tries: Array
    fallback: Params
    inner: PyTree


@struct
class ConjugateGradient(Accelerator):
    """Directions g + b d from the EM step g and the direction before, d, searched by the secant rule.

    The gradient of the objective is that of q at the same point (Fisher's identity) and costs no pass over
    the data unless the model has local scores. A point along a direction is taken where the slope has
    fallen to half, or where the secant rule has been tried; one that lowers the objective never.

    Attributes:
        algorithm: what maps.
    """

    algorithm: Algorithm = EM()

    def begin(self, problem: Problem, params: Params) -> Search:
        start = self.flat(problem, State(params))
        zero = jnp.zeros_like(start)
        inner = self.algorithm.begin(problem, params)
        return Search(
            base=start,
            gradient=zero,
            direction=zero,
            length=jnp.ones((), start.dtype),
            tries=jnp.int32(0),
            fallback=params,
            inner=inner,
        )

    def next(self, problem: Problem, point: Point, memory: Search) -> Move:
        mapped, inner = self.map(problem, point, memory.inner)
        here, there = self.flat(problem, State(point.params)), self.flat(problem, State(mapped))
        gradient = _gradient(problem, point)

        searching = memory.tries > 0
        slope_before = memory.gradient @ memory.direction
        slope = gradient @ memory.direction
        # Where the slope would vanish if it changed as it did so far.
        secant = memory.length * slope_before / (slope_before - slope)
        secant = jnp.where(jnp.isfinite(secant) & (secant > 0), secant, memory.length * 2)
        longer = jnp.clip(secant, memory.length / 4, memory.length * 8)
        shorter = jnp.clip(secant, memory.length / 16, memory.length / 2)
        steep = (jnp.abs(slope) > 0.5 * jnp.abs(slope_before)) & ~point.small & (memory.tries < 2)
        again = searching & jnp.where(point.accepted, steep, memory.tries < TRIES)
        lost = searching & ~point.accepted & ~again

        change = gradient - memory.gradient
        step = there - here
        bend = memory.direction @ change
        beta = jnp.where(searching & (bend != 0), -(step @ change) / jnp.where(bend != 0, bend, 1), 0)
        turned = step + beta * memory.direction
        direction = jnp.where((gradient @ turned > 0) & jnp.isfinite(turned).all(), turned, step)

        # An EM map in full decides whether to stop, and where the search was lost it begins anew.
        plain = lost | (point.small & ~again & searching)
        base = jnp.where(again, memory.base, here)
        direction = jnp.where(again, memory.direction, direction)
        length = jnp.where(again, jnp.where(point.accepted, longer, shorter), jnp.clip(memory.length, 1, 64))
        fallback = tree_where(point.accepted, mapped, memory.fallback)
        jump = base + length * direction - there
        target, leaps = self.leap(problem, State(mapped), jump, ~plain)
        tries = jnp.where(leaps, jnp.where(again, memory.tries + 1, 1), 0).astype(jnp.int32)
        return Move(
            params=tree_where(leaps, target.params, fallback),
            trial=leaps,
            memory=Search(
                base=base,
                gradient=jnp.where(again, memory.gradient, gradient),
                direction=direction,
                length=length.astype(here.dtype),
                tries=tries,
                fallback=fallback,
                inner=inner,
            ),
        )


def _gradient(problem: Problem, point: Point) -> Array:
    """(P,) gradient of the objective at the point, in affine coordinates."""
    constraints, q = problem.constraints(point.params), expected_objective(problem, point)

    def at(coordinates: PyTree) -> Array:
        return q(sets.from_affine(constraints, coordinates, point.params))

    return ravel_pytree(jax.grad(at)(sets.to_affine(constraints, point.params)))[0]
