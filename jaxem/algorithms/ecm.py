"""Expectation and conditional maximization: one group of leaves after another."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import optax
from jax import Array

from jaxem.engine.ascent import climb_by, regularized_ascent
from jaxem.engine.em import check_optimizer
from jaxem.engine.m_step import q_function, with_pseudo
from jaxem.engine.problem import Algorithm, Point, Problem, expected_objective
from jaxem.numerics.leaves import as_names, leaf_names, named
from jaxem.numerics.trees import tree_where
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


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
        about = problem.model.centered(params)
        moves = regularizer.moves(params)
        climb = climb_by(self.optimizer, self.inner_steps, problem.total_weight)
        for mask in self._masks(params):
            start = params
            if about.m_step is not None:
                # What the closed form says of the group is where to start, if it is better than where it stands.
                closed = about.m_step(with_pseudo(about, point.stats, params), params)
                proposal = jax.tree.map(lambda m, on, c, p: c if m and on else p, mask, moves, closed, params)
                proposal = regularizer.shared(proposal)
                start = tree_where(whole(proposal) >= whole(params), proposal, params)
            params = regularized_ascent(q, start, problem.model.constraints, regularizer, climb, mask)
        return params, memory
