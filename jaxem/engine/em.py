"""Expectation-Maximization: the M-step itself as the way to move."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from jaxem.engine.ascent import climb_by
from jaxem.engine.m_step import m_step, with_pseudo
from jaxem.engine.problem import Algorithm, Move, Point, Problem
from jaxem.numerics.trees import tree_where
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


def check_optimizer(optimizer: Any, owner: str) -> None:
    """Raise TypeError for what is no Optax transformation."""
    if not isinstance(optimizer, optax.GradientTransformation):
        wanted = "an optax.GradientTransformation, e.g. optax.adam(1e-2)"
        raise TypeError(f"{owner}'s optimizer must be {wanted}; got {type(optimizer).__name__}")


#: EM maps before the first step ahead: the first ones choose the maximum.
PATIENCE = 8


@struct
class Ahead:
    """Memory of EM for a model with a scoring step.

    Attributes:
        fallback: the EM map from where the restart stands, to which a failed step ahead returns.
        tried: whether the point to be evaluated is a step ahead.
        settled: whether the last one failed or was small: the restart may stop.
        wait: int32, EM maps until the next one.
        pause: int32, EM maps after one that failed: twice as many each time.
    """

    fallback: Params
    tried: Array
    settled: Array
    wait: Array
    pause: Array


@struct
class EM(Algorithm):
    """Expectation-Maximization; generalized EM where a model has no closed M-step (Dempster, Laird and Rubin 1977).

    Entries towards whose limit EM creeps go ahead by `scoring_step`, where the model has one: a trial, kept where the
    objective is no lower.

    Attributes:
        optimizer: Optax transformation for parameters without a closed M-step; None is L-BFGS. Build it
            once: its identity is part of what is compiled.
        inner_steps: its updates in one M-step, at most.
    """

    optimizer: optax.GradientTransformation | None = static(default=None)
    inner_steps: int | Array = 100

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            check_optimizer(self.optimizer, "EM")

    def map(self, problem: Problem, point: Point, memory: PyTree) -> tuple[Params, PyTree]:
        climb, restrained = climb_by(self.optimizer, self.inner_steps, problem.total_weight), problem.regularizer
        params = m_step(problem.model, point.stats, point.params, problem.blocks, point.local, climb, regularizer=restrained)
        return params, memory

    def begin(self, problem: Problem, params: Params) -> PyTree:
        if problem.model.scoring_step is None or not problem.regularizer.idle:
            return ()
        no = jnp.array(False)
        return Ahead(params, tried=no, settled=no, wait=jnp.int32(PATIENCE), pause=jnp.int32(1))

    def next(self, problem: Problem, point: Point, memory: PyTree) -> Move:
        if not isinstance(memory, Ahead):
            return super().next(problem, point, memory)
        mapped, _ = self.map(problem, point, memory)
        about = problem.model.centered(point.params)
        ahead = about.scoring_step(with_pseudo(about, point.stats, point.params), point.params, mapped)
        failed = memory.tried & ~point.accepted
        settled = failed | (point.small & (memory.tried | memory.settled))
        # Where a restart would stop that has not been ahead, it looks there first.
        # After a step ahead an EM map, on which alone a rule can tell that little is left.
        tries = ~settled & ~memory.tried & (point.small | (memory.wait <= 0))
        pause = jnp.where(failed, 2 * memory.pause, jnp.where(memory.tried, 1, memory.pause))
        wait = jnp.where(failed, pause, jnp.maximum(memory.wait - 1, 0))
        mapped = tree_where(failed, memory.fallback, mapped)
        new = Ahead(mapped, tried=tries, settled=settled, wait=wait, pause=pause)
        return Move(tree_where(tries, ahead, mapped), tries, new, goes_on=tries)
