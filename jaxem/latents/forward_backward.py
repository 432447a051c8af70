"""The scaled forward and backward recursions of a chain of discrete states, in probabilities, time first.

Likelihoods are divided by their maximum at every step, beliefs by their sum (Rabiner 1989, section V.A), the
backward messages by their own maximum: reusing the forward constants there would lose the last digits in float32.
One chain can be cut in blocks that run side by side: a first pass finds how each block maps what comes in.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.numerics import PRECISION, any_lane, divided, safe_log
from jaxem.types import struct

#: From this many numbers on, likelihoods are exponentiated all at once, outside the recursion.
MANY = 1 << 15

#: Up to this many states a step is a sum of products that is compiled into one loop with what stands around it; a call of
#: a matrix product would take several times as long.
FEW = 8


@struct
class Smoothed:
    """What the data say of the states. Chains in m lanes (a chain, or a block of one), T steps each.

    Attributes:
        log_mass: (T, m) log p(x_t | x before); their sum is the log-likelihood.
        belief: (T, K, m) p(z_t | x up to t).
        before: (T, K, m) the belief one step before; where a chain starts `after` is zero.
        visits: (T, K, m) p(z_t | all x).
        after: (T, K, m) what turns transition and `before` into p(z_{t-1}, z_t | all x):
            before[t, i] transition[i, j] after[t, j].
    """

    log_mass: Array
    belief: Array
    before: Array
    visits: Array
    after: Array


def step_forward(transition: Array, belief: Array) -> Array:
    """(K, m) one step ahead; `transition` already transposed, so that rows are read in order."""
    return _times(transition, belief)


def _times(matrix: Array, x: Array) -> Array:
    """(K, m) matrix (K, K) times x (K, m)."""
    if len(matrix) > FEW:
        return jnp.matmul(matrix, x, precision=PRECISION)
    return (matrix.T[:, :, None] * x[:, None]).sum(0)


def _likelihood(predicted: Array, scores: Array) -> tuple[Array, Array]:
    """Axes (K, m): exp(scores - top), and top (m,), the best score among states that can be reached.

    A better one that cannot would underflow all the others.
    """
    reachable = predicted > 0
    top = jax.lax.stop_gradient(jnp.where(reachable, scores, -jnp.inf).max(0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    return jnp.exp(jnp.where(reachable, scores - top, -jnp.inf)), top


def absorb(predicted: Array, scores: Array) -> tuple[Array, Array]:
    """Belief (K, m) and log-mass (m,) once `predicted` (K, m) has met the local scores of its step."""
    likelihood, top = _likelihood(predicted, scores)
    joint = predicted * likelihood
    mass = joint.sum(0)
    return divided(joint, mass), safe_log(mass) + top


def forward(transition: Array, scores: Array, predicted: Array) -> tuple[Array, Array, Array, Array]:
    """Beliefs (T, K, m), the scaled likelihoods (T, K, m) that led to them, scaled masses and log-scales (T, m)."""
    turned = transition.T

    def careful() -> tuple[Array, Array, Array, Array]:
        def absorbed(predicted: Array, s: Array) -> tuple[Array, Array, Array, Array]:
            likelihood, top = _likelihood(predicted, s)
            joint = predicted * likelihood
            mass = joint.sum(0)
            return divided(joint, mass), likelihood, mass, top

        def step(belief: Array, s: Array):
            out = absorbed(step_forward(turned, belief), s)
            return out[0], out

        first = absorbed(predicted, scores[0])
        _, rest = jax.lax.scan(step, first[0], scores[1:])
        belief, likelihood, mass, top = (jnp.concatenate([a[None], b]) for a, b in zip(first, rest, strict=True))
        return belief, likelihood, mass, top

    if scores.size < MANY:
        return careful()

    # The maximum over all states will do as long as the reachable ones keep enough of the mass, which shows afterwards.
    top = jax.lax.stop_gradient(scores.max(1))
    top = jnp.where(jnp.isfinite(top), top, 0)
    likelihood = jnp.exp(scores - top[:, None])

    def absorbed(predicted: Array, likelihood: Array) -> tuple[Array, Array]:
        joint = predicted * likelihood
        mass = joint.sum(0)
        return divided(joint, mass), mass

    def step(belief: Array, now: Array):
        out = absorbed(step_forward(turned, belief), now)
        return out[0], out

    first = absorbed(predicted, likelihood[0])
    _, rest = jax.lax.scan(step, first[0], likelihood[1:])
    belief, mass = (jnp.concatenate([a[None], b]) for a, b in zip(first, rest, strict=True))
    lost = (jax.lax.stop_gradient(mass) < jnp.sqrt(jnp.finfo(mass.dtype).tiny)).any()
    return jax.lax.cond(any_lane(lost), careful, lambda: (belief, likelihood, mass, top))


def _backward(transition: Array, likelihood: Array, belief: Array, linked: Array, last: Array) -> Array:
    """(T, K, m) messages p(x after t | z_t), each divided by its maximum over states that can be reached.

    Args:
        transition: (K, K).
        likelihood: (T, K, m).
        belief: (T, K, m); zero where a state cannot be reached.
        linked: (T, m) whether step t follows step t - 1 in its chain; message t - 1 is one where it does not.
        last: (K, m) message at the last step.
    """

    def scaled(message: Array, belief: Array) -> Array:
        top = jax.lax.stop_gradient(jnp.where(belief > 0, message, 0).max(0))
        return jnp.where(belief > 0, divided(message, top), 0)

    def step(message: Array, now: tuple[Array, Array, Array]):
        likelihood, linked, belief = now
        new = _times(transition, likelihood * message)
        new = jnp.where(linked, scaled(new, belief), 1)
        return new, new

    _, messages = jax.lax.scan(step, last, (likelihood[1:], linked[1:], belief[:-1]), reverse=True)
    return jnp.concatenate([messages, last[None]])


def smooth(initial: Array, transition: Array, scores: Array, valid: Array, n_blocks: int = 1) -> Smoothed:
    """Filter and smoother of n chains.

    Args:
        initial: (K,) probabilities.
        transition: (K, K) probabilities, rows the state before.
        scores: (T, K, n) local log-densities.
        valid: (T, n); False beyond a chain's end.
        n_blocks: blocks in time that run side by side, B.
    """
    n_steps, k, n = scores.shape
    linked = valid.at[0].set(False)
    if n_blocks == 1:
        predicted = jnp.broadcast_to(initial[:, None], (k, n))
        return smooth_lanes(transition, scores, valid, linked, predicted, jnp.zeros_like(predicted), jnp.ones_like(predicted))
    length = -(-n_steps // n_blocks)
    cut = lambda x: _cut(x, n_blocks, length)  # noqa: E731
    scores, valid, linked = cut(scores), cut(valid), cut(linked)
    maps, log_scale = _block_maps(transition, scores, linked)
    first = jnp.broadcast_to(initial[:, None], (k, n))
    coming, messages = _between_blocks(first, maps, log_scale, scores, valid, transition, n_blocks)
    predicted = step_forward(transition.T, coming).at[:, :n].set(first)
    out = smooth_lanes(transition, scores, valid, linked, predicted, coming, messages)
    return jax.tree.map(lambda x: _join(x, n_blocks, n_steps), out)


def message_before(transition: Array, found: Smoothed, coming: Array, linked: Array) -> Array:
    """(K, m) message at the step before the first of `found`, where the belief was `coming`; one where nothing follows."""
    message = _times(transition, found.after[0])
    top = jax.lax.stop_gradient(jnp.where(coming > 0, message, 0).max(0))
    return jnp.where(linked[0], jnp.where(coming > 0, divided(message, top), 0), 1)


def smooth_lanes(transition, scores, valid, linked, predicted, coming, last) -> Smoothed:
    """Each lane by itself: `predicted` (K, m) before its first step, `coming` the belief before that, `last` message."""
    scores = jnp.where(valid[:, None], scores, 0)
    belief, likelihood, mass, top = forward(transition, scores, predicted)
    messages = _backward(transition, likelihood, belief, linked, last)
    weighted = belief * messages
    total = weighted.sum(1)
    before = jnp.concatenate([coming[None], belief[:-1]])
    # The pairs at t add up to sum_j predicted[j] likelihood[j] messages[j], and belief = predicted likelihood / mass.
    return Smoothed(
        log_mass=jnp.where(valid, safe_log(mass) + top, 0),
        belief=belief,
        before=before,
        visits=divided(weighted, jnp.where(valid, total, jnp.inf)[:, None]),
        after=divided(divided(likelihood * messages, mass[:, None]), jnp.where(linked, total, jnp.inf)[:, None]),
    )


# --- blocks in time --------------------------------------------------------------------------
def _cut(x: Array, n_blocks: int, length: int) -> Array:
    """(T, ..., n) to (length, ..., B * n), blocks outermost; steps beyond T are zero (False)."""
    x = jnp.concatenate([x, jnp.zeros((n_blocks * length - x.shape[0], *x.shape[1:]), x.dtype)])
    x = jnp.moveaxis(x.reshape(n_blocks, length, *x.shape[1:]), 0, -2)
    return x.reshape(*x.shape[:-2], -1)


def _join(x: Array, n_blocks: int, n_steps: int) -> Array:
    """What `_cut` did, undone."""
    x = jnp.moveaxis(x.reshape(*x.shape[:-1], n_blocks, -1), -2, 0)
    return x.reshape(-1, *x.shape[2:])[:n_steps]


def _block_maps(transition: Array, scores: Array, linked: Array) -> tuple[Array, Array]:
    """How beliefs before a block turn into joint masses after it: (K before, K after, m) scaled, and log-scales (K, m)."""
    turned = transition.T

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]):
        belief, total = carry
        s, on = now
        likelihood, top = jax.vmap(_likelihood, (1, None), (1, 0))(
            predicted := jnp.einsum("ji,iam->jam", turned, belief, precision=PRECISION), s
        )
        joint = predicted * likelihood
        mass = joint.sum(0)
        new = (divided(joint, mass), total + safe_log(mass) + top)
        return (jnp.where(on, new[0], belief), jnp.where(on, new[1], total)), None

    k, m = scores.shape[1:]
    start = jnp.broadcast_to(jnp.eye(k, dtype=scores.dtype)[..., None], (k, k, m))
    (after, total), _ = jax.lax.scan(step, (start, jnp.zeros((k, m), scores.dtype)), (scores, linked))
    return jnp.swapaxes(after, 0, 1), total


def _between_blocks(first, maps, log_scale, scores, valid, transition, n_blocks) -> tuple[Array, Array]:
    """Beliefs before every block (zero before the first), and messages at the end of every block: (K, B * n) each."""
    k, n = first.shape
    by_block = lambda x: jnp.moveaxis(x.reshape(*x.shape[:-1], n_blocks, n), -2, 0)  # noqa: E731
    maps, log_scale = by_block(maps), by_block(log_scale)

    # The first block starts from `first` instead of a belief before it.
    head = jnp.where(valid[:, None], scores, 0)[..., :n]
    belief, _ = absorb(first, head[0])
    on = valid[1:, :n]

    def through_first(belief: Array, now: tuple[Array, Array]):
        s, on = now
        new, _ = absorb(step_forward(transition.T, belief), s)
        return jnp.where(on, new, belief), None

    belief, _ = jax.lax.scan(through_first, belief, (head[1:], on))

    def weights(belief: Array, scale: Array) -> Array:
        top = jnp.where(belief > 0, scale, -jnp.inf).max(0)
        return jnp.exp(jnp.where(belief > 0, scale - jnp.where(jnp.isfinite(top), top, 0), -jnp.inf))

    def onward(belief: Array, block: tuple[Array, Array]):
        maps, scale = block
        joint = jnp.einsum("im,ijm->jm", belief * weights(belief, scale), maps, precision=PRECISION)
        return divided(joint, joint.sum(0)), belief

    _, coming = jax.lax.scan(onward, belief, (maps[1:], log_scale[1:]))

    def back(message: Array, block: tuple[Array, Array, Array]):
        maps, scale, belief = block
        new = weights(belief, scale) * jnp.einsum("ijm,jm->im", maps, message, precision=PRECISION)
        new = divided(new, jnp.where(belief > 0, new, 0).max(0))
        return new, new

    ones = jnp.ones_like(first)
    _, messages = jax.lax.scan(back, ones, (maps[1:], log_scale[1:], coming), reverse=True)
    flat = lambda x: jnp.moveaxis(x, 0, -2).reshape(k, -1)  # noqa: E731
    return flat(jnp.concatenate([jnp.zeros_like(first)[None], coming])), flat(jnp.concatenate([messages, ones[None]]))
