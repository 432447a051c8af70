"""The M-step: the model's closed form, and Optax ascending q for whatever has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxem import constraints as sets
from jaxem.blocks import Blocks, fold
from jaxem.engine.e_step import block_rows
from jaxem.numerics import all_finite, inner, tree_add, tree_where
from jaxem.types import Model, Params

PyTree = Any

#: Built once, so that its identity, and with it every compiled fit, stays the same.
DEFAULT_OPTIMIZER = optax.lbfgs(memory_size=10)


def log_prior(model: Model, params: Params) -> Array | float:
    """Conjugate log-prior <pseudo-statistics, natural>, plus the model's own `log_prior`."""
    model = model.at(params)
    pseudo = model.pseudo_stats(params)
    value = 0.0 if pseudo is None else inner(pseudo, model.natural(params))
    return value + (model.log_prior(params) if model.log_prior else 0.0)


def with_pseudo(model: Model, stats: PyTree, params: Params) -> PyTree:
    """Statistics plus the pseudo-statistics of the conjugate prior; `model` already taken about `params`."""
    pseudo = model.pseudo_stats(params)
    return stats if pseudo is None else tree_add(stats, pseudo)


def expected_scores(model: Model, params: Params, blocks: Blocks, local: PyTree) -> Callable[[Params], Array]:
    """theta -> sum of weight * <posterior of the local scores at `params`, scores(theta)>.

    Posteriors belong to their rows and never add up, so each evaluation recomputes them block by block
    instead of storing N of them.
    """
    packed = model.pack(model.natural(params))

    def at(theta: Params) -> Array:
        @jax.checkpoint
        def term(block, local):
            rows = block_rows(model, params, block, local)
            _, pull = jax.vjp(lambda s: model.log_marginal(packed, block.data, _with_scores(rows, s)), rows.scores)
            (posterior,) = pull(block.weight)
            return inner(jax.lax.stop_gradient(posterior), model.scores(theta, block.data))

        return fold(term, blocks, local)

    return at


def _with_scores(rows, scores):
    return type(rows)(local=rows.local, scores=scores, labels=rows.labels)


def q_function(model: Model, stats: PyTree, params: Params, blocks: Blocks, local: PyTree) -> Callable[[Params], Array]:
    """q(theta) = <stats + pseudo-statistics, natural(theta)> + expected scores + log-prior, at the E-step of `params`."""
    model = model.at(params)
    total = with_pseudo(model, stats, params)
    scores = expected_scores(model, params, blocks, local) if model.scores else None

    def q(theta: Params) -> Array:
        value = inner(total, model.natural(theta))
        value = value + scores(theta) if scores else value
        return value + model.log_prior(theta) if model.log_prior else value

    return q


def ascend(
    q: Callable[[Params], Array],
    params: Params,
    constraints: PyTree,
    ascended: PyTree,
    optimizer: optax.GradientTransformation,
    inner_steps: Array | int,
    scale: Array | float,
) -> Params:
    """Ascend q over the leaves marked in the prefix tree `ascended`, in free coordinates; never falls.

    Args:
        q: objective.
        params: where to start; also gives shapes, fixed values and structural zeros.
        constraints: prefix tree of constraints.
        ascended: prefix tree of bools.
        optimizer: any Optax transformation.
        inner_steps: updates at most; ends sooner where the gradient vanishes.
        scale: q / scale is of order one (the total weight).
    """
    mask = jax.tree.leaves(jax.tree.map(lambda m, sub: jax.tree.map(lambda _: m, sub), ascended, params))
    leaves, structure = jax.tree.flatten(sets.to_free(constraints, params))
    start = [x for x, m in zip(leaves, mask, strict=True) if m]

    def rebuild(active: list[Array]) -> Params:
        moving = iter(active)
        free = [next(moving) if m else x for x, m in zip(leaves, mask, strict=True)]
        new = sets.from_free(constraints, jax.tree.unflatten(structure, free), params)
        flat = zip(jax.tree.leaves(new), jax.tree.leaves(params), mask, strict=True)
        return jax.tree.unflatten(jax.tree.structure(params), [n if m else o for n, o, m in flat])

    def loss(active: list[Array]) -> Array:
        return -q(rebuild(active)) / scale

    optimizer = optax.with_extra_args_support(optimizer)
    value_and_grad = optax.value_and_grad_from_state(loss)
    tolerance = jnp.finfo(jnp.result_type(*start)).eps ** 0.6

    def unfinished(carry):
        _, _, size, step = carry
        return (step < inner_steps) & (size > tolerance)

    def update(carry):
        active, state, _, step = carry
        value, grad = value_and_grad(active, state=state)
        updates, state = optimizer.update(grad, state, active, value=value, grad=grad, value_fn=loss)
        size = jnp.stack([jnp.abs(g).max(initial=0) for g in jax.tree.leaves(grad)]).max()
        return optax.apply_updates(active, updates), state, size, step + 1

    size = jnp.full((), jnp.inf, jnp.result_type(*start))
    carry: Any = (start, optimizer.init(start), size, jnp.int32(0))
    active = jax.lax.while_loop(unfinished, update, carry)[0]
    # An optimizer's last step may overshoot or leave the finite numbers: then the start stands.
    return tree_where((loss(active) <= loss(start)) & all_finite(active), rebuild(active), params)


def gradient_steps(
    q: Callable[[Params], Array],
    params: Params,
    constraints: PyTree,
    optimizer: optax.GradientTransformation,
    state: PyTree,
    inner_steps: Array | int,
    scale: Array | float,
) -> tuple[Params, PyTree]:
    """`inner_steps` updates of an optimizer that goes on from `state`; where q falls, a step along its gradient instead.

    Args:
        q: objective.
        params: where to start.
        constraints: prefix tree of constraints.
        optimizer: any Optax transformation, over the free coordinates of all parameters.
        state: its state.
        inner_steps: number of updates.
        scale: q / scale is of order one (the total weight).

    Returns:
        New parameters and the optimizer's new state.
    """
    start = sets.to_free(constraints, params)
    extra = optax.with_extra_args_support(optimizer)

    def loss(free: PyTree) -> Array:
        return -q(sets.from_free(constraints, free, params)) / scale

    def update(_, carry):
        free, state = carry
        value, grad = jax.value_and_grad(loss)(free)
        updates, state = extra.update(grad, state, free, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(free, updates), state

    free, new_state = jax.lax.fori_loop(0, inner_steps, update, (start, state))
    before, gradient = jax.value_and_grad(loss)(start)
    rises = (loss(free) <= before) & all_finite(free)

    # An optimizer may overshoot or circle: then the gradient itself is followed, as far as q rises. A step that
    # only stood still would pass for convergence.
    def against(size: Array) -> PyTree:
        return jax.tree.map(lambda s, g: s - size * g, start, gradient)

    def too_far(size: Array) -> Array:
        return ~(loss(against(size)) <= before) & (size > jnp.finfo(before.dtype).eps)

    size = jax.lax.while_loop(lambda s: ~rises & too_far(s), lambda s: s / 4, jnp.ones((), before.dtype))
    descended = against(size)
    free = tree_where(rises, free, tree_where(loss(descended) <= before, descended, start))
    return sets.from_free(constraints, free, params), tree_where(all_finite(new_state), new_state, state)


def m_step(
    model: Model,
    stats: PyTree,
    params: Params,
    blocks: Blocks,
    local: PyTree,
    optimizer: optax.GradientTransformation | None = None,
    inner_steps: Array | int = 100,
    penalty: Callable[[Params], Array] | None = None,
) -> Params:
    """New parameters from the statistics of an E-step at `params`."""
    about = model.at(params)
    free_form = model.log_prior is not None or penalty is not None
    new = params
    if about.m_step is not None and not free_form:
        new = about.m_step(with_pseudo(about, stats, params), params)
    ascended = True if free_form else about.ascended
    if not any(jax.tree.leaves(ascended)):
        return new
    q = q_function(model, stats, params, blocks, local)
    target = q if penalty is None else lambda theta: q(theta) - penalty(theta)
    scale = jnp.maximum(blocks.weight.sum(), 1)
    return ascend(target, new, model.constraints, ascended, optimizer or DEFAULT_OPTIMIZER, inner_steps, scale)
