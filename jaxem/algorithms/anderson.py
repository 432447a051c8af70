"""Anderson acceleration of EM, damped and restarted (Henderson and Varadhan 2019, DAAREM)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.algorithms.jump import Accelerator, State
from jaxem.engine.em import EM
from jaxem.engine.problem import Algorithm, Move, Point, Problem
from jaxem.numerics.trees import tree_where
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


@struct
class Window:
    """Memory of `Anderson`.

    Attributes:
        points: (m + 1, P) points, newest first, zeros where there is none.
        residuals: (m + 1, P) EM map minus point of each.
        count: int32, how many there are.
        confidence: int32, jumps that rose less those that fell; the more, the less damping.
        jumped: whether the point now evaluated is a jump.
        fallback: EM map of the last point accepted.
        inner: memory of the algorithm that maps.
    """

    points: Array
    residuals: Array
    count: Array
    confidence: Array
    jumped: Array
    fallback: State
    inner: PyTree


@struct
class Anderson(Accelerator):
    """Extrapolates from the residuals of the last points; a jump that lowers the objective is undone.

    The least-squares problem for the coefficients is damped by a ridge that lets their squared norm be
    the fraction 1 / (1 + 1.2^(25 - confidence)) of the undamped one's (Henderson and Varadhan 2019,
    section 3.1). The window is emptied each time it is full (section 2.3), and when a jump failed.

    Attributes:
        depth: m, differences remembered.
        damping: whether to damp.
        algorithm: what maps.
    """

    depth: int = static(default=5)
    damping: bool = static(default=True)
    algorithm: Algorithm = EM()

    def begin(self, problem: Problem, params: Params) -> Window:
        state = self.first(problem, params)
        start = self.flat(problem, state)
        empty = jnp.zeros((self.depth + 1, start.size), start.dtype)
        inner = self.algorithm.begin(problem, params)
        return Window(
            points=empty,
            residuals=empty,
            count=jnp.int32(0),
            confidence=jnp.int32(0),
            jumped=jnp.array(False),
            fallback=state,
            inner=inner,
        )

    def next(self, problem: Problem, point: Point, memory: Window) -> Move:
        mapped, inner = self.map(problem, point, memory.inner)
        before, after = self.states(problem, point, mapped)
        here = self.flat(problem, before)
        residual = self.flat(problem, after) - here
        failed = ~point.accepted
        step = jnp.where(failed, -self.depth, memory.jumped.astype(jnp.int32))
        confidence = jnp.maximum(memory.confidence + step, -2 * KAPPA)

        # A full window starts afresh from this point; a failure forgets this point too.
        count = jnp.where(memory.count > self.depth, 0, memory.count)
        points = jnp.roll(memory.points, 1, 0).at[0].set(here)
        residuals = jnp.roll(memory.residuals, 1, 0).at[0].set(residual)
        count = jnp.where(failed, 0, count + 1).astype(jnp.int32)

        # Where the change is already small, an EM map in full decides whether to stop.
        wanted = (count > 1) & ~(point.small & memory.jumped)
        jump = self._jump(points, residuals, count, confidence)
        target, leaps = self.leap(problem, after, jump, wanted)
        target = tree_where(failed, memory.fallback, target)
        return Move(
            params=target.params,
            local=target.local,
            trial=leaps,
            memory=Window(
                points=points,
                residuals=residuals,
                count=count,
                confidence=confidence,
                jumped=leaps,
                fallback=tree_where(failed, memory.fallback, after),
                inner=inner,
            ),
        )

    def _jump(self, points: Array, residuals: Array, count: Array, confidence: Array) -> Array:
        """(P,) what the window adds to the EM map of its newest point."""
        seen = (jnp.arange(self.depth) + 1 < count)[:, None]
        moves = jnp.where(seen, points[:-1] - points[1:], 0)
        changes = jnp.where(seen, residuals[:-1] - residuals[1:], 0)
        u, size, vt = jnp.linalg.svd(changes.T, full_matrices=False)
        present = size > 1e2 * jnp.finfo(size.dtype).eps * size[0]
        inverse = jnp.where(present, 1 / jnp.where(present, size, 1), 0)
        along = u.T @ residuals[0]
        if self.damping:
            ridge = _ridge(jnp.where(present, size, 0), along, inverse, confidence)
            inverse = jnp.where(present, size / (size**2 + ridge), 0)
        return -(vt.T @ (inverse * along)) @ (moves + changes)


#: Successes after which damping is half gone, and how fast it goes.
KAPPA, GROWTH = 25, 1.2


def _ridge(size: Array, along: Array, inverse: Array, confidence: Array) -> Array:
    """The ridge at which the coefficients' squared norm is the wanted fraction, by bisection of its logarithm."""
    fraction = 1 / (1 + GROWTH ** (KAPPA - confidence.astype(size.dtype)))
    wanted = fraction * ((along * inverse) ** 2).sum()
    tiny = jnp.finfo(size.dtype).tiny
    largest = jnp.maximum(size[0] ** 2, jnp.sqrt(tiny))

    def norm(ridge: Array) -> Array:
        return ((size * along / (size**2 + ridge)) ** 2).sum()

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        too_long = norm(largest * jnp.exp(middle)) > wanted
        return jnp.where(too_long, middle, low), jnp.where(too_long, high, middle)

    bounds = (jnp.full((), -46.0, size.dtype), jnp.full((), 14.0, size.dtype))
    return largest * jnp.exp(jax.lax.fori_loop(0, 30, halve, bounds)[1])
