"""How a lane moves: from an evaluated point, the parameters to evaluate next."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from jaxem.engine.m_step import m_step
from jaxem.engine.problem import Problem
from jaxem.types import Params, static, struct

PyTree = Any


@struct
class Point:
    """Parameters with their E-step.

    Attributes:
        params: where the E-step was taken.
        stats: expected sufficient statistics.
        local: per-datum parameters.
        value: objective.
        accepted: whether the lane now stands here; else it stands where it stood before.
        sound: whether the objective is a finite number.
        small: whether a stopping criterion would fire on the change from where the lane stood.
    """

    params: Params
    stats: PyTree
    local: PyTree
    value: Array
    accepted: Array
    sound: Array
    small: Array


@struct
class Move:
    """What to evaluate next.

    Attributes:
        params: the parameters.
        trial: False where they are the EM map of where the lane stands, which cannot lower the objective; True
            where they may: then the lane goes there only if the objective rises.
        memory: what the algorithm remembers.
    """

    params: Params
    trial: Array
    memory: PyTree


class Algorithm:
    """How a lane moves. Subclasses are frozen dataclasses made pytrees by `jaxem.struct`.

    An algorithm gives `map`, the EM map, and may give `next`, where it wants to go other than there.
    """

    def begin(self, problem: Problem, params: Params) -> PyTree:
        """What to remember before the first move."""
        del problem, params
        return ()

    def map(self, problem: Problem, point: Point, memory: PyTree) -> tuple[Params, PyTree]:
        """The M-step at `point`, and the memory after it."""
        raise NotImplementedError

    def next(self, problem: Problem, point: Point, memory: PyTree) -> Move:
        """The next parameters. Default: the EM map."""
        params, memory = self.map(problem, point, memory)
        return Move(params, jnp.array(False), memory)

    def scope(self) -> AbstractContextManager[Any]:
        """The context in which the model's functions are traced."""
        return nullcontext()


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

    def map(self, problem: Problem, point: Point, memory: PyTree) -> tuple[Params, PyTree]:
        params = m_step(
            problem.model, point.stats, point.params, problem.blocks, point.local,
            self.optimizer, self.inner_steps, problem.penalty,
        )  # fmt: skip
        return params, memory
