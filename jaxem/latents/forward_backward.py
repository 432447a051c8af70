"""The scaled forward and backward recursions of a chain of discrete states, in probabilities, time first.

Likelihoods are divided by their maximum at every step, beliefs by their sum (Rabiner 1989, section V.A), the
backward messages by a maximum or a sum of their own: reusing the forward constants would lose the last digits in float32.
One chain can be cut in blocks that run side by side: a first pass finds how each block maps what comes in.

Axes: m chains (or blocks of one) that share a transition, and r transitions, last in memory: a step runs over all m r of
them in one stretch, where `vmap` would leave it a few states at a time. An entry of a vmapped axis brings a transition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap

from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.logs import divided, ratio, safe_log
from jaxem.numerics.trees import any_vmapped, pairwise_sum
from jaxem.pytree import struct

#: From this many numbers on, likelihoods are exponentiated all at once, outside the recursion.
MANY = 1 << 15

#: Up to this many states a step is a sum of products, written out, that is compiled into one loop with what stands around it;
#: a call of a matrix product takes several times as long there, a sum over an axis up to a hundred times.
FEW = 16


@struct
class Smoothed:
    """What the data say of the states.

    Attributes:
        log_mass: (T, m, r) log p(x_t | x before); their sum is the log-likelihood.
        belief: (T, K, m, r) p(z_t | x up to t).
        before: (T, K, m, r) the belief one step before; where a chain starts `after` is zero.
        visits: (T, K, m, r) p(z_t | all x).
        after: (T, K, m, r) what turns transition and `before` into p(z_{t-1}, z_t | all x):
            before[t, i] transition[i, j] after[t, j].
        moves: (K, K, 1, r) sum over t of before[t, i] after[t, j] for a single chain; None for several.
    """

    log_mass: Array
    belief: Array
    before: Array
    visits: Array
    after: Array
    moves: Array | None = None


def _times(matrix: Array, x: Array) -> Array:
    """(J, m, r) matrix (J, K, r or 1) times x (K, m, r); r is one beyond few states."""
    if len(x) <= FEW:
        return sum((matrix[:, i, None] * x[i] for i in range(1, len(x))), start=matrix[:, 0, None] * x[0])
    return jnp.matmul(matrix[..., 0], x[..., 0], precision=PRECISION)[..., None]


def _likelihood(predicted: Array, scores: Array) -> tuple[Array, Array]:
    """exp(scores - top) (K, ...), and top (...), the best score among states that can be reached.

    A better one that cannot would underflow all the others.
    """
    reachable = predicted > 0
    top = jax.lax.stop_gradient(jnp.where(reachable, scores, -jnp.inf).max(0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    return jnp.exp(jnp.where(reachable, scores - top, -jnp.inf)), top


def absorb(predicted: Array, scores: Array) -> tuple[Array, Array]:
    """Belief (K, ...) and log-mass (...) once `predicted` (K, ...) has met the local scores of its step."""
    likelihood, top = _likelihood(predicted, scores)
    joint = predicted * likelihood
    mass = joint.sum(0)
    return divided(joint, mass), safe_log(mass) + top


@struct
class Ahead:
    """What the recursion in the order of time finds of each chain.

    Attributes:
        joint: (T, K, m, r) p(z_t, x_t | x before), scaled; over their sum p(z_t | x up to t).
        likelihood: (T, K, m, r) scaled likewise, p(x_t | z_t).
        mass: (T, m, r) likewise, p(x_t | x before).
        top: (T, m, r) log of what all were divided by.
        predicted: (K, m, r) what the last step says of the one after.
    """

    joint: Array
    likelihood: Array
    mass: Array
    top: Array
    predicted: Array

    @property
    def belief(self) -> Array:
        """(T, K, m, r) p(z_t | x up to t)."""
        return divided(self.joint, self.mass[:, None])


def forward(transition: Array, scores: Array, predicted: Array) -> Ahead:
    """From `predicted` (K, m, r) for the first step."""
    turned = transition.swapaxes(0, 1)  # rows are read in order
    onward = _onward(turned, scores[0, 0].size)

    def careful(scores: Array) -> Ahead:
        def step(predicted: Array, scores: Array):
            likelihood, top = _likelihood(predicted, scores)
            joint = predicted * likelihood
            mass = joint.sum(0)
            return _times(turned, divided(joint, mass)), (joint, likelihood, mass, top)

        last, out = jax.lax.scan(step, predicted, scores)
        return Ahead(*out, last)

    if scores.size < MANY:
        return careful(scores)

    # The maximum over all states will do as long as the reachable ones keep enough of the mass, which shows afterwards.
    top = jax.lax.stop_gradient(scores.max(1))
    possible = ~any_vmapped(~jnp.isfinite(top).all())
    top = jnp.where(jnp.isfinite(top), top, 0)
    scores = scores - top[:, None]
    # In a branch by itself, and of a lone chain along one axis: else XLA's exponential takes several times as long on a CPU.
    shape = (-1,) if top[0].size == 1 else scores.shape
    likelihood = jax.lax.cond(possible, jnp.exp, jnp.zeros_like, scores.reshape(shape)).reshape(scores.shape)

    def step(predicted: Array, likelihood: Array):
        joint = predicted * likelihood
        return onward(joint), joint

    last, joint = jax.lax.scan(step, predicted, likelihood)
    mass = _sum(joint)
    fast = Ahead(joint, likelihood, mass, jnp.zeros_like(top), last)
    found = jax.lax.cond(_lost(mass), lambda: careful(scores), lambda: fast)
    return dataclasses.replace(found, top=found.top + top)


@struct
class Back:
    """What the recursion against the order of time finds of each chain, up to a factor of each step.

    Attributes:
        joint: (T, K, m, r) p(x_t and all x afterwards | z_t).
        weighted: (T, K, m, r) p(z_t | all x).
        total: (T, m, r) the sum of `weighted` over states.
        message: (K, m, r) p(all x | state before the first).
    """

    joint: Array
    weighted: Array
    total: Array
    message: Array


def backward(transition: Array, ahead: Ahead, linked: Array, last: Array) -> Back:
    """From the message `last` (K, m, r) p(x afterwards | z) of the last step."""
    onward = _onward(transition, ahead.mass[0].size)

    def met(joint: Array, message: Array) -> Back:
        # What was predicted times `joint`: both count the likelihood.
        weighted = ahead.joint * ratio(joint, ahead.likelihood)
        return Back(joint, weighted, _sum(weighted), message)

    def careful() -> Back:
        def step(message: Array, now: tuple[Array, Array, Array]):
            likelihood, before, linked = now
            joint = likelihood * _reachable(message, before)
            return jnp.where(linked, _times(transition, joint), 1), joint

        message, joint = jax.lax.scan(step, last, (ahead.likelihood, ahead.joint, linked), reverse=True)
        return met(joint, message)

    if ahead.likelihood.size < MANY:
        return careful()

    # As ahead: states that cannot be reached may stand out as long as the others keep enough.
    def step(message: Array, now: tuple[Array, Array]):
        likelihood, linked = now
        joint = likelihood * message
        return jnp.where(linked, onward(joint), 1), joint

    message, joint = jax.lax.scan(step, last, (ahead.likelihood, linked), reverse=True)
    fast = met(joint, message)
    return jax.lax.cond(_lost(fast.total), careful, lambda: fast)


def _onward(matrix: Array, n_chains: int) -> Callable[[Array], Array]:
    """What takes x (K, m, r) to matrix times x over the sum of x, as fast as a CPU can with so many chains."""
    if len(matrix) > FEW:
        with_sum = _with_sum(matrix)
        return lambda x: _times_over_sum(with_sum, x)
    if n_chains == 1:  # the division need not wait for the product, nor the product for the division
        return lambda x: divided(_times(matrix, x), x.sum(0))
    return lambda x: _times(matrix, divided(x, x.sum(0)))


def _sum(x: Array) -> Array:
    """(T, ...) of x (T, K, ...); of few states written out, so that it joins the loops around it."""
    return sum((x[:, i] for i in range(1, x.shape[1])), start=x[:, 0]) if x.shape[1] <= FEW else x.sum(1)


def _with_sum(matrix: Array) -> Array:
    """Rows of ones below, as many as fill a vector register: one product gives the sum of x too.

    Each operation of a loop has its price in XLA on a CPU.
    """
    return jnp.concatenate([matrix, jnp.ones_like(matrix[:8])])


def _times_over_sum(with_sum: Array, x: Array) -> Array:
    """Matrix times x, over the sum of x."""
    product = _times(with_sum, x)
    return divided(product[: len(x)], product[-1])


def _lost(mass: Array) -> Array:
    """Whether so little is left anywhere, in any chain, that digits are lost; NaN counts."""
    return any_vmapped(~(jax.lax.stop_gradient(mass) >= jnp.sqrt(jnp.finfo(mass.dtype).tiny)).all())


def _reachable(message: Array, mass: Array) -> Array:
    """`message` over its maximum over states of positive `mass`, which can be reached; zero for the others."""
    top = jax.lax.stop_gradient(jnp.where(mass > 0, message, 0).max(0))
    return jnp.where(mass > 0, divided(message, top), 0)


def smooth_chains(
    transition: Array, scores: Array, *, valid: Array, linked: Array, predicted: Array, coming: Array, last: Array
) -> tuple[Smoothed, Array]:
    """Each chain by itself.

    Args:
        transition: (K, K, r).
        scores: (T, K, m, r).
        valid: (T, m, r).
        linked: (T, m, r) whether a step follows the one before in its chain.
        predicted: (K, m, r) before the first step.
        coming: (K, m, r) belief before that; zero where a chain starts.
        last: (K, m, r) message p(x afterwards | z) at the last step.

    Returns:
        What was found, and (K, m, r) the message before the first step.
    """
    ahead = forward(transition, jnp.where(valid[:, None], scores, 0), predicted)
    back = backward(transition, ahead, linked, last)
    found = Smoothed(
        log_mass=jnp.where(valid, safe_log(ahead.mass) + ahead.top, 0),
        belief=ahead.belief,
        before=jnp.concatenate([coming[None], ahead.belief[:-1]]),
        visits=divided(back.weighted, jnp.where(valid, back.total, jnp.inf)[:, None]),
        after=divided(back.joint, jnp.where(linked, back.total, jnp.inf)[:, None]),
    )
    return found, _reachable(back.message, coming)


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def smooth(initial: Array, transition: Array, scores: Array, valid: Array, n_blocks: int = 1) -> Smoothed:
    """Filter and smoother of n chains; in what comes out r is left out. Of few states the axes of `vmap` stand last in memory.

    Args:
        initial: (K,) probabilities.
        transition: (K, K) probabilities, rows the state before.
        scores: (T, K, n) local log-densities.
        valid: (T, n); False beyond a chain's end.
        n_blocks: blocks in time that run side by side, B.
    """
    run = _side_by_side(n_blocks) if len(transition) <= FEW else partial(_smooth, n_blocks)
    return _alone(run, initial, transition, scores, valid)


@smooth.defjvp
def _(n_blocks, primals, tangents):
    # Second derivatives are those of the recursions themselves: a batching rule of one's own has no transpose.
    *floats, valid = primals
    return jax.jvp(lambda *floats: _alone(partial(_smooth, n_blocks), *floats, valid), tuple(floats), tuple(tangents[:3]))


def _alone(smooth, *args: Array) -> Smoothed:
    """One transition."""
    return jax.tree.map(lambda x: x[..., 0], smooth(*(x[..., None] for x in args)))


def _side_by_side(n_blocks: int):
    """`_smooth`, which folds an axis of `vmap` into the last axis of all that it takes and gives."""
    run = custom_vmap(partial(_smooth, n_blocks))

    @run.def_vmap
    def _(axis_size: int, in_batched: list[bool], *args: Array):
        r = max(x.shape[-1] for x in args)

        def fold(x: Array, batched: bool) -> Array:
            if not batched and x.shape[-1] == 1:
                return x
            x = jnp.moveaxis(x, 0, -2) if batched else x[..., None, :]
            return jnp.broadcast_to(x, (*x.shape[:-2], axis_size, r)).reshape(*x.shape[:-2], axis_size * r)

        def unfold(x: Array) -> Array:
            return jnp.moveaxis(x.reshape(*x.shape[:-1], axis_size, r), -2, 0)

        found = jax.tree.map(unfold, run(*map(fold, args, in_batched)))
        return found, jax.tree.map(lambda _: True, found)

    return run


def _smooth(n_blocks: int, initial: Array, transition: Array, scores: Array, valid: Array) -> Smoothed:
    """Axes as in `smooth`, and r or 1 last."""
    n_steps, k, n = scores.shape[:3]
    r = max(x.shape[-1] for x in (initial, transition, scores, valid))
    scores, valid = (jnp.broadcast_to(x, (*x.shape[:-1], r)) for x in (scores, valid))
    first = jnp.broadcast_to(initial[:, None], (k, n, r))
    linked = valid.at[0].set(False)
    if n_blocks == 1:
        none, last = jnp.zeros_like(first), jnp.ones_like(first)
        found, _ = smooth_chains(transition, scores, valid=valid, linked=linked, predicted=first, coming=none, last=last)
        return _with_moves(found)
    length = -(-n_steps // n_blocks)
    cut = lambda x: _cut(x, n_blocks, length)  # noqa: E731
    scores, valid, linked = cut(scores), cut(valid), cut(linked)
    maps, log_scale = (_by_block(x, n_blocks) for x in _block_maps(transition, scores, linked))
    coming, last = _between_blocks(first, maps, log_scale, scores, valid, transition)
    predicted = _times(transition.swapaxes(0, 1), coming).at[:, :n].set(first)
    found, _ = smooth_chains(transition, scores, valid=valid, linked=linked, predicted=predicted, coming=coming, last=last)
    return _with_moves(jax.tree.map(lambda x: _join(x, n_blocks, n_steps), found))


def _with_moves(found: Smoothed) -> Smoothed:
    """Of single chains. Sums over about a thousand steps are added: in float32 one long sum would lose digits."""
    _, k, n, r = found.before.shape
    if n != 1:
        return found
    before, after = found.belief[:-1, :, 0], found.after[1:, :, 0]
    if r > 1 and jax.default_backend() == "cpu":
        return dataclasses.replace(found, moves=_sum_of_products(before, after)[:, :, None])
    whole = len(before) - len(before) % 1024
    total = partial(jnp.einsum, "...tir,...tjr->...ijr", precision=PRECISION)
    pieces = total(*(x[:whole].reshape(-1, 1024, k, r) for x in (before, after)))
    rest = total(*(x[None, whole:] for x in (before, after)))
    return dataclasses.replace(found, moves=pairwise_sum(jnp.concatenate([pieces, rest]))[:, :, None])


def _sum_of_products(x: Array, y: Array) -> Array:
    """(K, K, r) sum over t of x (t, K, r) times y (t, K, r), transitions last in memory.

    Eight eighths of time make one loop that keeps no product, ten times as fast on a CPU as a batch of small matrix products.
    """
    n = len(x) // 8
    total = (x[8 * n :, :, None] * y[8 * n :, None]).sum(0)
    if n:
        eighths = [x[i * n : (i + 1) * n, :, None] * y[i * n : (i + 1) * n, None] for i in range(8)]
        total += pairwise_sum(sum(eighths[1:], start=eighths[0]))
    return total


# --- blocks in time --------------------------------------------------------------------------
def _cut(x: Array, n_blocks: int, length: int) -> Array:
    """(T, ..., n, r) to (length, ..., B * n, r), blocks outermost; steps beyond T are zero (False)."""
    x = jnp.concatenate([x, jnp.zeros((n_blocks * length - x.shape[0], *x.shape[1:]), x.dtype)])
    x = jnp.moveaxis(x.reshape(n_blocks, length, *x.shape[1:]), 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _by_block(x: Array, n_blocks: int) -> Array:
    """(..., B * n, r) to (B, ..., n, r)."""
    return jnp.moveaxis(x.reshape(*x.shape[:-2], n_blocks, -1, x.shape[-1]), -3, 0)


def _join(x: Array, n_blocks: int, n_steps: int) -> Array:
    """What `_cut` did, undone."""
    x = _by_block(x, n_blocks)
    return x.reshape(-1, *x.shape[2:])[:n_steps]


def _block_maps(transition: Array, scores: Array, linked: Array) -> tuple[Array, Array]:
    """How beliefs before a block turn into joint masses after it.

    Returns:
        (K before, K after, m, r) scaled, and log-scales (K before, m, r).
    """
    turned = transition.swapaxes(0, 1)

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]):
        belief, total = carry
        s, on = now
        predicted = _times(turned, belief.reshape(k, -1, r)).reshape(belief.shape)
        new, log_mass = jax.vmap(absorb, (1, None), (1, 0))(predicted, s)
        return (jnp.where(on, new, belief), jnp.where(on, total + log_mass, total)), None

    k, m, r = scores.shape[1:]
    start = jnp.broadcast_to(jnp.eye(k, dtype=scores.dtype)[..., None, None], (k, k, m, r))
    (after, total), _ = jax.lax.scan(step, (start, jnp.zeros((k, m, r), scores.dtype)), (scores, linked))
    return jnp.swapaxes(after, 0, 1), total


def _between_blocks(first, maps, log_scale, scores, valid, transition) -> tuple[Array, Array]:
    """Beliefs before every block (zero before the first), and messages at the end of every block: (K, B * n, r) each.

    `maps` and `log_scale` are as from `_block_maps`, blocks first.
    """
    k, n, r = first.shape
    turned = transition.swapaxes(0, 1)

    # The first block starts from `first` instead of a belief before it.
    head = jnp.where(valid[:, None], scores, 0)[:, :, :n]
    belief, _ = absorb(first, head[0])
    on = valid[1:, :n]

    def through_first(belief: Array, now: tuple[Array, Array]):
        s, on = now
        new, _ = absorb(_times(turned, belief), s)
        return jnp.where(on, new, belief), None

    belief, _ = jax.lax.scan(through_first, belief, (head[1:], on))

    def weights(belief: Array, scale: Array) -> Array:
        top = jnp.where(belief > 0, scale, -jnp.inf).max(0)
        return jnp.exp(jnp.where(belief > 0, scale - jnp.where(jnp.isfinite(top), top, 0), -jnp.inf))

    def onward(belief: Array, block: tuple[Array, Array]):
        maps, scale = block
        joint = jnp.einsum("inr,ijnr->jnr", belief * weights(belief, scale), maps, precision=PRECISION)
        return divided(joint, joint.sum(0)), belief

    _, coming = jax.lax.scan(onward, belief, (maps[1:], log_scale[1:]))

    def back(message: Array, block: tuple[Array, Array, Array]):
        maps, scale, belief = block
        new = weights(belief, scale) * jnp.einsum("ijnr,jnr->inr", maps, message, precision=PRECISION)
        new = divided(new, jnp.where(belief > 0, new, 0).max(0))
        return new, new

    ones = jnp.ones_like(first)
    _, messages = jax.lax.scan(back, ones, (maps[1:], log_scale[1:], coming), reverse=True)
    flat = lambda x: jnp.moveaxis(x, 0, -3).reshape(k, -1, r)  # noqa: E731
    return flat(jnp.concatenate([jnp.zeros_like(first)[None], coming])), flat(jnp.concatenate([messages, ones[None]]))
