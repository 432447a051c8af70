"""Ordered subsets: one M-step from the statistics of one part of the data after another."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.algorithms.jump import Accelerator
from jaxem.engine.e_step import e_step
from jaxem.engine.em import EM
from jaxem.engine.problem import Algorithm, Move, Point, Problem
from jaxem.numerics.blocks import dealt
from jaxem.numerics.logs import divided
from jaxem.numerics.trees import any_vmapped, tree_add, tree_where
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params


@struct
class Visits:
    """Memory of a restart.

    Attributes:
        pooled: int32, how many of the subsets share one M-step.
        fallback: the EM map of where the restart stands, to which a failed epoch returns.
        inner: memory of the algorithm that maps.
    """

    pooled: Array
    fallback: Params
    inner: PyTree


@struct
class OrderedSubsets(Accelerator):
    """Each subset of the data in turn stands for all of them: OSEM (Hudson and Larkin 1994), for any model.

    Subset s holds rows s, s + n_subsets, s + 2 n_subsets, ... A step is an epoch: one E-step and one M-step a
    subset, its statistics scaled up to the weight of all data, then an E-step on all of them. Far from the
    maximum an epoch does the work of `n_subsets` EM maps; near it, it circles about the maximum and may fall.
    So an epoch is a trial. Where it lowers the objective the restart goes to the EM map instead, and where that
    happens, or the gain is small enough to stop, each M-step after it pools twice as many subsets, until it
    pools all: then the algorithm is EM, and what stops it is as for EM. The restart never falls.

    Attributes:
        n_subsets: at most the number of rows; best a divisor of it.
        algorithm: what maps the statistics of a subset to parameters.
    """

    n_subsets: int = static()
    algorithm: Algorithm = EM()

    def begin(self, problem: Problem, params: Params) -> Visits:
        """All subsets apart.

        Raises:
            ValueError: for more subsets than rows.
            TypeError: for a model with scores: posteriors of different subsets never add; for a stream.
        """
        if problem.blocks.data is None:
            raise TypeError("OrderedSubsets needs all the data at hand; a stream has them in batches: see jaxem.online")
        n = problem.blocks.weight.size
        if not 1 <= self.n_subsets <= n:
            raise ValueError(f"OrderedSubsets.n_subsets must be from 1 to the number of rows, {n}; got {self.n_subsets}")
        if problem.model.scores is not None:
            kind = type(problem.model).__name__
            raise TypeError(f"OrderedSubsets needs a model whose statistics add up over data; {kind} has local scores")
        return Visits(jnp.int32(1), params, self.algorithm.begin(problem, params))

    def next(self, problem: Problem, point: Point, memory: Visits) -> Move:
        mapped, inner = self.map(problem, point, memory.inner)
        coarser = ~point.accepted | point.small
        pooled = jnp.where(coarser, 2 * memory.pooled, memory.pooled)
        pooled = jnp.minimum(pooled, self.n_subsets).astype(jnp.int32)
        visits = point.accepted & (pooled < self.n_subsets)
        # A cond on what holds in any restart stays a branch under vmap.
        epoch = jax.lax.cond(
            any_vmapped(visits), lambda: self._epoch(problem, point, memory.inner, pooled), lambda: (mapped, inner)
        )
        params, inner = tree_where(visits, epoch, (mapped, inner))
        return Move(tree_where(point.accepted, params, memory.fallback), visits, Visits(pooled, mapped, inner))

    def _epoch(self, problem: Problem, point: Point, inner: PyTree, pooled: Array) -> tuple[Params, PyTree]:
        """Parameters and memory after each subset has been visited once."""
        blocks, local = dealt(problem.blocks, point.local, self.n_subsets)
        total = problem.total_weight
        nothing = (jax.tree.map(jnp.zeros_like, point.stats), jnp.zeros_like(total))

        def visit(carry: tuple[Params, PyTree, tuple[PyTree, Array]], subset: PyTree) -> tuple[PyTree, None]:
            params, inner, (stats, weight) = carry
            i, blocks, local = subset
            found = e_step(problem.model, params, blocks, local)
            stats, weight = tree_add(stats, found.stats), weight + blocks.total_weight()
            scale = divided(total, weight)
            whole = dataclasses.replace(point, params=params, stats=jax.tree.map(lambda s: scale * s, stats))
            due = ((i + 1) % pooled == 0) | (i == self.n_subsets - 1)
            new = tree_where(due & (weight > 0), self.map(problem, whole, inner), (params, inner))
            return (*new, tree_where(due, nothing, (stats, weight))), None

        start = (point.params, inner, nothing)
        return jax.lax.scan(visit, start, (jnp.arange(self.n_subsets), blocks, local))[0][:2]
