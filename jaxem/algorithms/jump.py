"""Accelerators of slow EM: two EM maps and a jump along what they showed (SQUAREM, quasi-Newton).

Parameters move in affine coordinates: all entries of a simplex but the last, the lower triangle of a symmetric
matrix, all else as it is. A jump leaves the parameter space only by crossing its boundary; then it is shortened.

Where a model has per-datum parameters, the EM map acts on both: from what an M-step gave and the per-datum parameters
it came from, an E-step makes new ones of these and the next M-step new ones of those. Both jump together.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from jaxem import constraints as sets
from jaxem.engine.e_step import update_local
from jaxem.engine.problem import Algorithm, Move, Point, Problem
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


def begun(problem: Problem, params: Params) -> State:
    """A restart's first state."""
    if not _moves_local(problem):
        return State(params)
    return State(params, update_local(problem.model.centered(params), params, problem.blocks, None))


def states(problem: Problem, point: Point, mapped: Params) -> tuple[State, State]:
    """The states before and after the EM map at `point`, whose M-step gave `mapped`."""
    if not _moves_local(problem):
        return State(point.params), State(mapped)
    return State(point.params, point.began), State(mapped, point.local)


def spaces(problem: Problem, state: State) -> State:
    """Prefix tree of constraints."""
    return State(problem.constraints(state.params), None if state.local is None else problem.model.local_constraints)


def flat(problem: Problem, state: State) -> Array:
    """(P,) affine coordinates of all of a state in one vector."""
    return ravel_pytree(sets.to_affine(spaces(problem, state), state))[0]


def jump_from(problem: Problem, mapped: State, jump: Array, wanted: Array) -> tuple[State, Array]:
    """`mapped` + `jump`, pulled back and halved until it lies inside the parameter space, above every floor.

    Args:
        problem: for the model's constraints.
        mapped: an EM map.
        jump: (P,), in affine coordinates.
        wanted: whether to jump at all.

    Returns:
        The state, and whether it is a jump; `mapped` where none is wanted or fits.
    """
    constraints = spaces(problem, mapped)
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


class Accelerator(Algorithm):
    """An algorithm that goes elsewhere than to the EM map of another."""

    algorithm: Algorithm
    #: Neighbouring points round alike, those that a jump leads to do not; and of these the luckiest is kept.
    rounding: ClassVar[int] = 1_000

    def map(self, problem: Problem, point: Point, memory: PyTree) -> tuple[Params, PyTree]:
        return self.algorithm.map(problem, point, memory)

    @property
    def hard(self) -> bool:
        return self.algorithm.hard


#: Where a cycle of two maps and a jump stands: what the point now evaluated is.
START, SECOND, LANDING, SETTLING = range(4)

#: A landing lower by more than this many times what the cycle's first map gained is given up at once.
HOPELESS = 100


@struct
class Cycle:
    """Memory of a cycle.

    Attributes:
        phase: int32, START, SECOND, LANDING or SETTLING.
        start: (P,) first point of the cycle.
        value: objective at the first point, later at the second.
        gain: what the first map gained.
        fallback: the second EM map, to which a failed jump returns.
        jumper: what the rule for jumps remembers.
        inner: memory of the algorithm that maps.
    """

    phase: Array
    start: Array
    value: Array
    gain: Array
    fallback: State
    jumper: PyTree
    inner: PyTree


class TwoMapsAndJump(Accelerator):
    """A cycle: EM map, EM map, jump; then the EM map of where it landed begins the next.

    A jump may lower the objective for a moment: it is kept where the EM map from there does not (Varadhan and
    Roland 2008, section 5); else the cycle returns to its second map. The restart itself never falls.
    """

    def begin_jumper(self, dtype: Any, n_params: int) -> PyTree:
        """What the rule for jumps remembers at first."""
        raise NotImplementedError

    def jump(self, first: Array, second: Array, third: Array, jumper: PyTree) -> tuple[Array, PyTree]:
        """(P,) from the third of three points, each the EM map of the one before; zero for none."""
        raise NotImplementedError

    def learn(self, jumper: PyTree, kept: Array, failed: Array) -> PyTree:
        """The rule's memory after a jump was kept, or failed, or neither."""
        del kept, failed
        return jumper

    def begin(self, problem: Problem, params: Params) -> Cycle:
        state = begun(problem, params)
        start = flat(problem, state)
        jumper = self.begin_jumper(start.dtype, start.size)
        zero = jnp.zeros((), start.dtype)
        return Cycle(jnp.int32(START), start, zero, zero, state, jumper, self.algorithm.begin(problem, params))

    def next(self, problem: Problem, point: Point, memory: Cycle) -> Move:
        mapped, inner = self.map(problem, point, memory.inner)
        before, after = states(problem, point, mapped)
        here, there = flat(problem, before), flat(problem, after)
        phase = memory.phase

        kept = (phase == SETTLING) & point.accepted
        hopeful = point.sound & (point.value >= memory.value - HOPELESS * memory.gain)
        landed = (phase == LANDING) & hopeful
        failed = ((phase == SETTLING) & ~point.accepted) | ((phase == LANDING) & ~hopeful)
        jumper = self.learn(memory.jumper, kept, failed)
        starts = (phase == START) | kept
        second = phase == SECOND

        jump, learnt = self.jump(memory.start, here, there, jumper)
        target, leaps = jump_from(problem, after, jump, second & (jump != 0).any())
        target = tree_where(failed, memory.fallback, target)
        after_second = jnp.where(leaps, LANDING, START)
        new_phase = jnp.where(second, after_second, jnp.where(starts, SECOND, jnp.where(landed, SETTLING, START)))
        return Move(
            params=target.params,
            local=target.local,
            trial=leaps | (landed & ~point.accepted),
            memory=Cycle(
                phase=new_phase.astype(jnp.int32),
                start=jnp.where(starts, here, memory.start),
                value=jnp.where(starts | second, point.value, memory.value),
                gain=jnp.where(second, point.value - memory.value, memory.gain),
                fallback=tree_where(second, after, memory.fallback),
                jumper=tree_where(second, learnt, jumper),
                inner=inner,
            ),
        )
