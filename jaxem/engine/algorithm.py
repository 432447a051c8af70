"""How a lane moves: from an evaluated point, the parameters to evaluate next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxem import constraints as sets
from jaxem.engine.ascent import DEFAULT_OPTIMIZER, gradient_steps, regularized_ascent
from jaxem.engine.e_step import e_step
from jaxem.engine.m_step import m_step, q_function, with_pseudo
from jaxem.engine.problem import Problem
from jaxem.leaves import as_names, leaf_names, named
from jaxem.numerics import hard_latents, tree_where
from jaxem.types import Params, static, struct

PyTree = Any


@struct
class Point:
    """Parameters with their E-step.

    Attributes:
        params: where the E-step was taken.
        stats: expected sufficient statistics.
        local: per-datum parameters.
        began: the per-datum parameters from which the E-step made these.
        value: objective.
        accepted: whether the lane now stands here; else it stands where it stood before.
        sound: whether the objective is a finite number.
        small: whether a stopping criterion would fire on the change from where the lane stood.
    """

    params: Params
    stats: PyTree
    local: PyTree
    began: PyTree
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
        local: the per-datum parameters from which the E-step is to go on; None: those of where the lane stands.
    """

    params: Params
    trial: Array
    memory: PyTree
    local: PyTree = None


class Algorithm:
    """How a lane moves. Subclasses are frozen dataclasses made pytrees by `jaxem.struct`.

    An algorithm gives `map`, the EM map, and may give `next`, where it wants to go other than there.
    """

    #: Rounding units by which an EM map may seem to lower the objective.
    rounding: ClassVar[int] = 100

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
        params = m_step(
            problem.model, point.stats, point.params, problem.blocks, point.local, problem.total_weight,
            self.optimizer, self.inner_steps, problem.regularizer,
        )  # fmt: skip
        return params, memory


@struct
class HardEM(EM):
    """EM with hard assignments: each datum belongs wholly to its most probable latent value.

    What rises is the classification log-likelihood, sum of max over z of log p(x, z) (Celeux and Govaert 1992,
    CEM; for chains Viterbi training, Juang and Rabiner 1990), and it is what `loglik` and `objective` report.
    For models whose discrete latent values are summed out by `jaxem.latents`.
    """

    def begin(self, problem: Problem, params: Params) -> PyTree:
        """Nothing to remember.

        Raises:
            TypeError: for a model without discrete latent values.
        """
        with hard_latents() as used:
            jax.eval_shape(lambda p: e_step(problem.model, p, problem.blocks).loglik, params)
        if not used:
            kind = type(problem.model).__name__
            raise TypeError(f"HardEM needs a model with discrete latent values summed out by jaxem.latents; got {kind}")
        return ()

    def scope(self) -> AbstractContextManager[Any]:
        return hard_latents()


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
        return gradient_steps(
            expected_objective(problem, point), point.params, problem.constraints(point.params), self.optimizer,
            memory, self.inner_steps, jnp.maximum(problem.total_weight, 1), problem.regularizer.shared,
        )  # fmt: skip


@struct
class ECM(Algorithm):
    """Expectation and conditional maximization: q is maximised over one group of leaves after another (Meng and Rubin 1993).

    Attributes:
        groups: names of leaves, dotted, a prefix standing for all below it: (("weights",), ("components.mean",), ...).
            A group of one may be a string. Leaves in no group stay as they are. None: each leaf is a group.
        optimizer: Optax transformation of each conditional maximization; None is L-BFGS.
        inner_steps: its updates in one of them, at most.
    """

    groups: Iterable[str | Iterable[str]] | None = static(default=None)
    optimizer: optax.GradientTransformation | None = static(default=None)
    inner_steps: int | Array = 100

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            check_optimizer(self.optimizer, "ECM")
        if self.groups is not None:
            object.__setattr__(self, "groups", tuple(as_names(group) for group in self.groups))

    def begin(self, problem: Problem, params: Params) -> PyTree:
        """Nothing to remember.

        Raises:
            ValueError: for a name that matches no leaf.
        """
        del problem
        self._masks(params)
        return ()

    def _masks(self, params: Params) -> list[PyTree]:
        groups = leaf_names(params) if self.groups is None else self.groups
        return [named(group, params, "ECM.groups") for group in groups]

    def map(self, problem: Problem, point: Point, memory: PyTree) -> tuple[Params, PyTree]:
        params, regularizer = point.params, problem.regularizer
        q = q_function(problem.model, point.stats, params, problem.blocks, point.local)
        whole = expected_objective(problem, point)
        about = problem.model.at(params)
        moves = regularizer.moves(params)
        for mask in self._masks(params):
            start = params
            if about.m_step is not None:
                # What the closed form says of the group is where to start, if it is better than where it stands.
                closed = about.m_step(with_pseudo(about, point.stats, params), params)
                proposal = jax.tree.map(lambda m, on, c, p: c if m and on else p, mask, moves, closed, params)
                proposal = regularizer.shared(proposal)
                start = tree_where(whole(proposal) >= whole(params), proposal, params)
            params = regularized_ascent(
                q, start, problem.model.constraints, regularizer, self.optimizer or DEFAULT_OPTIMIZER,
                self.inner_steps, jnp.maximum(problem.total_weight, 1), mask,
            )  # fmt: skip
        return params, memory


def expected_objective(problem: Problem, point: Point) -> Callable[[Params], Array]:
    """q with the log-prior, less the penalty: what an M-step at `point` raises."""
    q = q_function(problem.model, point.stats, point.params, problem.blocks, point.local)
    return lambda params: q(params) + problem.regularizer.value(params)
