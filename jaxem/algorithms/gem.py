"""Generalized EM: a few steps of an optimizer in place of a maximum."""

from __future__ import annotations

import optax
from jax import Array

from jaxem import constraints as sets
from jaxem.engine.ascent import climb_by, gradient_steps
from jaxem.engine.em import check_optimizer
from jaxem.engine.problem import Algorithm, Point, Problem, expected_objective
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


@struct
class GEM(Algorithm):
    """Generalized EM: a few steps of an optimizer on q instead of its maximum (Dempster, Laird and Rubin 1977).

    The optimizer sees all parameters in free coordinates and keeps its state, momentum and schedule, from one
    M-step to the next. Where they would lower q, a step along its gradient is taken instead.

    Attributes:
        optimizer: Optax transformation. Build it once: its identity is part of what is compiled.
        inner_steps: its updates in one M-step.
    """

    optimizer: optax.GradientTransformation = static(default=optax.adam(1e-2))
    inner_steps: int | Array = 5

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer, "GEM")

    def begin(self, problem: Problem, params: Params) -> PyTree:
        return self.optimizer.init(sets.to_free(problem.constraints(params), params))

    def map(self, problem: Problem, point: Point, memory: PyTree) -> tuple[Params, PyTree]:
        q, constraints = expected_objective(problem, point), problem.constraints(point.params)
        climb = climb_by(self.optimizer, self.inner_steps, problem.total_weight)
        return gradient_steps(q, point.params, constraints, climb, memory, problem.regularizer.shared)
