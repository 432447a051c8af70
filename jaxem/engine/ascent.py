"""How a function of the parameters is raised: by any optimizer in free coordinates, by proximal steps to exact zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxem import constraints as sets
from jaxem.engine.regularizer import Regularizer
from jaxem.numerics.leaves import spread
from jaxem.numerics.roots import backtracked
from jaxem.numerics.trees import all_finite, tree_where
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params

#: Built once, so that its identity, and with it every compiled fit, stays the same.
DEFAULT_OPTIMIZER = optax.lbfgs(memory_size=10)


@struct
class Climb:
    """By what and how far a function of the parameters is raised.

    Attributes:
        optimizer: any Optax transformation.
        inner_steps: its updates, at most.
        scale: the function / scale is of order one.
    """

    optimizer: optax.GradientTransformation = static()
    inner_steps: Array | int
    scale: Array | float


def climb_by(optimizer: optax.GradientTransformation | None, inner_steps: Array | int, total_weight: Array) -> Climb:
    """How an M-step climbs from statistics of data of `total_weight`; without an optimizer, by L-BFGS."""
    return Climb(optimizer or DEFAULT_OPTIMIZER, inner_steps, jnp.where(total_weight > 0, total_weight, 1))


def ascend(
    q: Callable[[Params], Array],
    params: Params,
    constraints: PyTree,
    among: PyTree,
    climb: Climb,
    shared: Callable[[Params], Params] = lambda params: params,
) -> Params:
    """Ascend q over the leaves marked in the prefix tree `among`, in free coordinates; never falls.

    Args:
        q: objective.
        params: where to start; also gives shapes, fixed values and structural zeros.
        constraints: prefix tree of constraints.
        among: prefix tree of bools.
        climb: by what and how far; it ends sooner where the gradient vanishes.
        shared: hands the values of these leaves to those tied to them.
    """
    mask = jax.tree.leaves(spread(among, params))
    if not any(mask):
        return params
    leaves, structure = jax.tree.flatten(sets.to_free(constraints, params))
    start = [x for x, m in zip(leaves, mask, strict=True) if m]

    def rebuild(active: list[Array]) -> Params:
        moving = iter(active)
        free = [next(moving) if m else x for x, m in zip(leaves, mask, strict=True)]
        new = sets.from_free(constraints, jax.tree.unflatten(structure, free), params)
        flat = zip(jax.tree.leaves(new), jax.tree.leaves(params), mask, strict=True)
        return shared(jax.tree.unflatten(jax.tree.structure(params), [n if m else o for n, o, m in flat]))

    def loss(active: list[Array]) -> Array:
        return -q(rebuild(active)) / climb.scale

    optimizer = optax.with_extra_args_support(climb.optimizer)
    initial = optimizer.init(start)
    # A line search leaves the value and gradient where it ended in the state; other optimizers have none.
    searches = optax.tree.get(initial, "value") is not None
    value_and_grad = optax.value_and_grad_from_state(loss) if searches else _value_and_grad(loss)
    tolerance = _tolerance(jnp.result_type(*start))

    def unfinished(carry):
        _, _, size, step = carry
        return (step < climb.inner_steps) & (size > tolerance)

    def update(carry):
        active, state, _, step = carry
        value, grad = value_and_grad(active, state=state)
        updates, state = optimizer.update(grad, state, active, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(active, updates), state, _largest(grad), step + 1

    size = jnp.full((), jnp.inf, jnp.result_type(*start))
    carry: Any = (start, initial, size, jnp.int32(0))
    active = jax.lax.while_loop(unfinished, update, carry)[0]
    return rebuild(downhill(loss, start, active))


def downhill(loss: Callable[[PyTree], Array], start: PyTree, new: PyTree) -> PyTree:
    """`new` where the loss fell; else, for an optimizer may overshoot or circle, a step against the gradient at `start`.

    An optimizer's failure that only stood still would pass for convergence.
    """
    (before, steep), (after, flat) = (jax.value_and_grad(loss)(at) for at in (start, new))
    # Near the bottom values differ by rounding only, and the gradient says which of the two lies lower.
    level = after <= before + 4 * jnp.finfo(before.dtype).eps * (1 + jnp.abs(before))
    fell = ((after <= before) | (level & (optax.tree.norm(flat) < optax.tree.norm(steep)))) & all_finite(new)
    stuck = ~fell & (_largest(steep) > _tolerance(before.dtype))

    def against(size: Array) -> PyTree:
        return jax.tree.map(lambda s, g: s - size * g, start, steep)

    def too_far(size: Array) -> Array:
        return stuck & ~(loss(against(size)) <= before)

    size, still = backtracked(too_far, jnp.ones((), before.dtype), 0.25, float(jnp.finfo(before.dtype).eps))
    return tree_where(fell, new, tree_where(stuck & ~still, against(size), start))


def _largest(gradient: PyTree) -> Array:
    return jnp.stack([jnp.abs(g).max(initial=0) for g in jax.tree.leaves(gradient)]).max()


def _tolerance(dtype: Any) -> Any:
    """Of the largest entry of a gradient: below it lies rounding."""
    return jnp.finfo(dtype).eps ** 0.6


def _value_and_grad(loss: Callable[[PyTree], Array]) -> Callable[..., tuple[Array, PyTree]]:
    return lambda at, *, state: jax.value_and_grad(loss)(at)


def gradient_steps(
    q: Callable[[Params], Array],
    params: Params,
    constraints: PyTree,
    climb: Climb,
    state: PyTree,
    shared: Callable[[Params], Params] = lambda params: params,
) -> tuple[Params, PyTree]:
    """So many updates of an optimizer that goes on from `state`; never falls.

    Args:
        q: objective.
        params: where to start.
        constraints: prefix tree of constraints.
        climb: by what, over the free coordinates of all parameters, and how many updates.
        state: the optimizer's state.
        shared: hands the values of leaves to those tied to them.

    Returns:
        New parameters and the optimizer's new state.
    """
    start = sets.to_free(constraints, params)
    extra = optax.with_extra_args_support(climb.optimizer)

    def loss(free: PyTree) -> Array:
        return -q(shared(sets.from_free(constraints, free, params))) / climb.scale

    def update(_, carry):
        free, state = carry
        value, grad = jax.value_and_grad(loss)(free)
        updates, state = extra.update(grad, state, free, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(free, updates), state

    free, new_state = jax.lax.fori_loop(0, climb.inner_steps, update, (start, state))
    free = downhill(loss, start, free)
    return shared(sets.from_free(constraints, free, params)), tree_where(all_finite(new_state), new_state, state)


def regularized_ascent(
    q: Callable[[Params], Array],
    params: Params,
    constraints: PyTree,
    regularizer: Regularizer,
    climb: Climb,
    among: PyTree = True,
) -> Params:
    """Ascend q + regularizer: leaves under an L1 penalty by proximal gradient steps, all others by the optimizer.

    Args:
        q: objective without the regularizer.
        params: where to start.
        constraints: prefix tree of constraints.
        regularizer: what restrains.
        climb: by what and how far, in updates of either kind.
        among: prefix tree of bools, the leaves that may move.
    """
    allowed = zip(jax.tree.leaves(regularizer.moves(params)), jax.tree.leaves(spread(among, params)), strict=True)
    moves = [m and a for m, a in allowed]
    sparse = [s is not None for s in regularizer.thresholds(params)]
    smooth = jax.tree.unflatten(jax.tree.structure(params), [m and not s for m, s in zip(moves, sparse, strict=True)])

    def target(theta: Params) -> Array:
        return q(theta) + regularizer.smooth(theta)

    constraints = regularizer.constraints(constraints, params)
    params = ascend(target, params, constraints, smooth, climb, regularizer.shared)
    sparse = [m and s for m, s in zip(moves, sparse, strict=True)]
    return proximal_ascent(target, params, regularizer, sparse, climb) if any(sparse) else params


def proximal_ascent(
    q: Callable[[Params], Array],
    params: Params,
    regularizer: Regularizer,
    sparse: list[bool],
    climb: Climb,
) -> Params:
    """Accelerated proximal gradient steps on the leaves under an L1 penalty (Beck and Teboulle 2009, FISTA).

    Step sizes by backtracking; the momentum restarts where it leads uphill (O'Donoghue and Candes 2015).
    """
    leaves, structure = jax.tree.flatten(params)
    places = [i for i, on in enumerate(sparse) if on]
    thresholds = regularizer.thresholds(params)
    weights = [jnp.asarray(thresholds[i]) / climb.scale for i in places]
    start = [leaves[i] for i in places]

    def rebuild(active: list[Array]) -> Params:
        new = list(leaves)
        for i, x in zip(places, active, strict=True):
            new[i] = x
        return regularizer.shared(jax.tree.unflatten(structure, new))

    def loss(active: list[Array]) -> Array:
        return -q(rebuild(active)) / climb.scale

    def whole(active: list[Array]) -> Array:
        return loss(active) - (regularizer.value(rebuild(active)) - regularizer.smooth(rebuild(active))) / climb.scale

    def shrunk(at: list[Array], gradient: list[Array], size: Array) -> list[Array]:
        moved = [x - size * g for x, g in zip(at, gradient, strict=True)]
        return [jnp.sign(x) * jnp.maximum(jnp.abs(x) - size * w, 0) + 0.0 for x, w in zip(moved, weights, strict=True)]

    def update(carry):
        here, at, momentum, size, _, step = carry
        value, gradient = jax.value_and_grad(loss)(at)

        def too_far(size: Array) -> Array:
            new = shrunk(at, gradient, size)
            change = jax.tree.map(jnp.subtract, new, at)
            bound = value + optax.tree.vdot(gradient, change) + optax.tree.vdot(change, change) / (2 * size)
            return loss(new) > bound + 1e-2 * tiny

        size, _ = backtracked(too_far, 1.5 * size, 0.5, tiny)
        new = shrunk(at, gradient, size)
        moved = jax.tree.map(jnp.subtract, new, here)
        uphill = jnp.greater(optax.tree.vdot(jax.tree.map(jnp.subtract, at, new), moved), 0)
        longer = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        factor = jnp.where(uphill, 0, (momentum - 1) / longer)
        ahead = jax.tree.map(lambda n, m: n + factor * m, new, moved)
        change = optax.tree.norm(jax.tree.map(jnp.subtract, new, at)) / size
        return new, ahead, jnp.where(uphill, 1, longer), size, change, step + 1

    def unfinished(carry):
        *_, change, step = carry
        return (step < climb.inner_steps) & (change > tolerance)

    dtype = jnp.result_type(*start)
    tolerance, tiny = jnp.finfo(dtype).eps ** 0.75, float(jnp.finfo(dtype).eps)
    one = jnp.ones((), dtype)
    carry = (start, start, one, one, jnp.full((), jnp.inf, dtype), jnp.int32(0))
    active = jax.lax.while_loop(unfinished, update, carry)[0]
    return tree_where((whole(active) <= whole(start)) & all_finite(active), rebuild(active), params)
