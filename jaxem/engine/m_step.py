"""The M-step: the model's closed form, and Optax ascending q for whatever has none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
from jax import Array

from jaxem.engine.ascent import Climb, ascend, regularized_ascent
from jaxem.engine.e_step import block_rows
from jaxem.engine.regularizer import Regularizer
from jaxem.model import Model
from jaxem.numerics.blocks import Blocks, fold
from jaxem.numerics.trees import inner, tree_add, tree_where
from jaxem.pytree import PyTree
from jaxem.types import Params


def log_prior(model: Model, params: Params) -> Array | float:
    """Conjugate log-prior <pseudo-statistics, natural>, plus the model's own `log_prior`."""
    model = model.centered(params)
    pseudo = model.pseudo_stats(params)
    value = 0.0 if pseudo is None else inner(pseudo, model.natural(params))
    return value + (model.log_prior(params) if model.log_prior else 0.0)


def with_pseudo(model: Model, stats: PyTree, params: Params) -> PyTree:
    """Statistics plus the pseudo-statistics of the conjugate prior; `model` already taken about `params`."""
    pseudo = model.pseudo_stats(params)
    return stats if pseudo is None else tree_add(stats, pseudo)


#: Posteriors of at most this many numbers a restart are kept through an M-step; more are recomputed block by block.
KEPT_POSTERIORS = 1 << 18


def expected_scores(model: Model, params: Params, blocks: Blocks, local: PyTree) -> Callable[[Params], Array]:
    """theta -> sum of weight * <posterior of the local scores at `params`, scores(theta)>.

    Posteriors belong to their rows and never add up. Where few they are kept; where many, each evaluation
    recomputes them, so that memory does not grow with N.
    """
    packed = model.pack(model.natural(params))

    def posterior(block: Blocks, local: PyTree) -> PyTree:
        rows = block_rows(model, params, block, local)
        _, pull = jax.vjp(lambda s: model.log_marginal(packed, block.data, dataclasses.replace(rows, scores=s)), rows.scores)
        return jax.lax.stop_gradient(pull(block.weight)[0])

    def summed(of: Callable[[Callable[[Params], Array]], PyTree]) -> PyTree:
        def term(block: Blocks, local: PyTree, kept: PyTree) -> PyTree:
            weighted = posterior(block, local) if kept is None else kept
            return of(lambda theta: inner(weighted, model.scores(theta, block.data)))

        return blocks.over_devices(fold(term, blocks, local, kept))

    # Value and gradient in one pass, added over devices together.
    @jax.custom_vjp
    def at(theta: Params) -> Array:
        return summed(lambda f: f(theta))

    at.defvjp(
        lambda theta: summed(lambda f: jax.value_and_grad(f)(theta)),
        lambda gradient, change: (jax.tree.map(lambda g: change * g, gradient),),
    )

    def all_blocks() -> PyTree:
        return jax.lax.map(lambda block: posterior(*block), (blocks, local))

    size = sum(math.prod(x.shape) for x in jax.tree.leaves(jax.eval_shape(all_blocks)))
    kept = all_blocks() if size <= KEPT_POSTERIORS else None
    return at


def q_function(model: Model, stats: PyTree, params: Params, blocks: Blocks, local: PyTree) -> Callable[[Params], Array]:
    """q(theta) = <stats + pseudo-statistics, natural(theta)> + expected scores + log-prior, at the E-step of `params`."""
    model = model.centered(params)
    total = with_pseudo(model, stats, params)
    scores = expected_scores(model, params, blocks, local) if model.scores else None

    def q(theta: Params) -> Array:
        value = inner(total, model.natural(theta))
        value = value + scores(theta) if scores else value
        return value + model.log_prior(theta) if model.log_prior else value

    return q


def m_step(
    model: Model,
    stats: PyTree,
    params: Params,
    blocks: Blocks,
    local: PyTree,
    climb: Climb,
    *,
    regularizer: Regularizer = Regularizer(),  # noqa: B008
) -> Params:
    """New parameters from the statistics of an E-step at `params`; `climb`: for those without a closed form."""
    about = model.centered(params)
    closed = params if about.m_step is None else about.m_step(with_pseudo(about, stats, params), params)
    if regularizer.idle and (model.log_prior is None or model.m_step_has_prior):
        if not any(jax.tree.leaves(about.without_closed_form)):
            return closed
        q = q_function(model, stats, params, blocks, local)
        return ascend(q, closed, model.constraints, about.without_closed_form, climb)

    # The closed form maximises something else: it is a start where it is better than none.
    q = q_function(model, stats, params, blocks, local)
    start = params
    if about.m_step is not None:
        proposal = regularizer.restored(closed, params)
        better = q(proposal) + regularizer.value(proposal) >= q(params) + regularizer.value(params)
        start = tree_where(better, proposal, params)
    return regularized_ascent(q, start, model.constraints, regularizer, climb)
