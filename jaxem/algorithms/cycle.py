"""Two EM maps and a jump along what they showed: the cycle of SQUAREM and quasi-Newton."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.algorithms.jump import Accelerator, State
from jaxem.engine.problem import Move, Point, Problem
from jaxem.model import undefined
from jaxem.numerics.trees import tree_where
from jaxem.pytree import PyTree, struct
from jaxem.types import Params

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
        raise undefined(self, "begin_jumper")

    def jump(self, first: Array, second: Array, third: Array, jumper: PyTree) -> tuple[Array, PyTree]:
        """(P,) from the third of three points, each the EM map of the one before; zero for none."""
        raise undefined(self, "jump")

    def learn(self, jumper: PyTree, kept: Array, failed: Array) -> PyTree:
        """The rule's memory after a jump was kept, or failed, or neither."""
        del kept, failed
        return jumper

    def begin(self, problem: Problem, params: Params) -> Cycle:
        state = self.first(problem, params)
        start = self.flat(problem, state)
        jumper = self.begin_jumper(start.dtype, start.size)
        zero = jnp.zeros((), start.dtype)
        return Cycle(
            phase=jnp.int32(START),
            start=start,
            value=zero,
            gain=zero,
            fallback=state,
            jumper=jumper,
            inner=self.algorithm.begin(problem, params),
        )

    def next(self, problem: Problem, point: Point, memory: Cycle) -> Move:
        mapped, inner = self.map(problem, point, memory.inner)
        before, after = self.states(problem, point, mapped)
        here, there = self.flat(problem, before), self.flat(problem, after)
        phase = memory.phase

        kept = (phase == SETTLING) & point.accepted
        hopeful = point.sound & (point.value >= memory.value - HOPELESS * memory.gain)
        landed = (phase == LANDING) & hopeful
        failed = ((phase == SETTLING) & ~point.accepted) | ((phase == LANDING) & ~hopeful)
        jumper = self.learn(memory.jumper, kept, failed)
        starts = (phase == START) | kept
        second = phase == SECOND

        jump, learnt = self.jump(memory.start, here, there, jumper)
        target, leaps = self.leap(problem, after, jump, second & (jump != 0).any())
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
