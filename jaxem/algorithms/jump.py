"""What accelerators of slow EM share: states as vectors, and jumps that stay inside the parameter space.

Parameters move in affine coordinates: all entries of a simplex but the last, the lower triangle of a symmetric
matrix, all else as it is. A jump leaves the parameter space only by crossing its boundary; then it is shortened.

Where a model has per-datum parameters, the EM map acts on both: from what an M-step gave and the per-datum parameters
it came from, an E-step makes new ones of these and the next M-step new ones of those. Both jump together.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from jaxem import constraints as sets
from jaxem.engine.e_step import update_local
from jaxem.engine.problem import Algorithm, Point, Problem
from jaxem.numerics.trees import tree_where
from jaxem.pytree import PyTree, struct
from jaxem.types import Params

#: A jump is halved so often before it is given up.
HALVINGS = 5


@struct
class State:
    """What an EM map acts on.

    Attributes:
        params: parameters.
        local: per-datum parameters; None where the model has none, or does not say in what set they live.
    """

    params: Params
    local: PyTree = None


def _moves_local(problem: Problem) -> bool:
    """Whether per-datum parameters jump along: not those of a stream, which are dropped, nor of which others hold a part."""
    return problem.model.local_constraints is not None and problem.blocks.data is not None and not problem.blocks.axes


def _spaces(problem: Problem, state: State) -> State:
    """Prefix tree of constraints."""
    return State(problem.constraints(state.params), None if state.local is None else problem.model.local_constraints)


class Accelerator(Algorithm):
    """An algorithm that goes elsewhere than to the EM map of another. A subclass gives `begin` and `next`.

    In `next`, `map` gives the EM map of the point and `states` the states before and after it; a jump is what is added
    to the state after, as a vector in the coordinates of `flat`, and `leap` makes a state of it that lies inside the
    parameter space. A move that leaps is a trial: where it lowers the objective the restart stays, `next` is called
    with a point that is not `accepted`, and must turn back, best to the EM map of the last point that was.
    """

    algorithm: Algorithm
    #: Neighbouring points round alike, those that a jump leads to do not; and of these the luckiest is kept.
    rounding: ClassVar[int] = 1_000

    def map(self, problem: Problem, point: Point, memory: PyTree) -> tuple[Params, PyTree]:
        return self.algorithm.map(problem, point, memory)

    @property
    def hard(self) -> bool:
        return self.algorithm.hard

    @staticmethod
    def first(problem: Problem, params: Params) -> State:
        """A restart's state before its first E-step."""
        if not _moves_local(problem):
            return State(params)
        return State(params, update_local(problem.model.centered(params), params, problem.blocks, None))

    @staticmethod
    def states(problem: Problem, point: Point, mapped: Params) -> tuple[State, State]:
        """The states before and after the EM map at `point`, whose M-step gave `mapped`."""
        if not _moves_local(problem):
            return State(point.params), State(mapped)
        return State(point.params, point.began), State(mapped, point.local)

    @staticmethod
    def flat(problem: Problem, state: State) -> Array:
        """(P,) affine coordinates of all of a state in one vector."""
        return ravel_pytree(sets.to_affine(_spaces(problem, state), state))[0]

    @staticmethod
    def leap(problem: Problem, mapped: State, jump: Array, wanted: Array) -> tuple[State, Array]:
        """`mapped` + `jump`, pulled back and halved until it lies inside the parameter space, above every floor.

        Args:
            problem: for the model's constraints.
            mapped: an EM map.
            jump: (P,), in affine coordinates.
            wanted: whether to jump at all.

        Returns:
            The state, and whether it is a jump; `mapped` where none is wanted or fits.
        """
        constraints = _spaces(problem, mapped)
        start, unravel = ravel_pytree(sets.to_affine(constraints, mapped))

        def at(size: Array) -> State:
            # Of many entries a few cross the boundary at any length: they alone are pulled back.
            jumped = sets.from_affine(constraints, unravel(start + size * jump), mapped)
            return sets.pulled_back(constraints, jumped, mapped)

        def fits(size: Array) -> Array:
            inside = sets.inside(constraints, at(size), mapped)
            return inside & ~jnp.asarray(problem.model.degenerate(at(size).params))

        def outside(carry):
            _, fit, halvings = carry
            return ~fit & (halvings < HALVINGS)

        def halve(carry):
            size, _, halvings = carry
            return size / 2, fits(size / 2), halvings + 1

        one = jnp.ones((), start.dtype)
        size, fit, _ = jax.lax.while_loop(outside, halve, (one, ~wanted | fits(one), jnp.int32(0)))
        leaps = wanted & fit
        return tree_where(leaps, at(size), mapped), leaps
