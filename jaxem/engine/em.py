"""Expectation-Maximization: the M-step itself as the way to move."""

from __future__ import annotations

from typing import Any

import optax
from jax import Array

from jaxem.engine.ascent import climb_by
from jaxem.engine.m_step import m_step
from jaxem.engine.problem import Algorithm, Point, Problem
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


def check_optimizer(optimizer: Any, owner: str) -> None:
    """Raise TypeError for what is no Optax transformation."""
    if not isinstance(optimizer, optax.GradientTransformation):
        wanted = "an optax.GradientTransformation, e.g. optax.adam(1e-2)"
        raise TypeError(f"{owner}'s optimizer must be {wanted}; got {type(optimizer).__name__}")


@struct
class EM(Algorithm):
    """Expectation-Maximization; generalized EM where a model has no closed M-step (Dempster, Laird and Rubin 1977).

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
