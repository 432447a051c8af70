"""A Markov chain of discrete states: log-partition, filter, smoother, Viterbi path, samples and forecasts.

Axes: K states, n chains, T steps. `log_initial` (K,), `log_transition` (K, K) with rows the state before, `scores`
(K, n, T) log p(x_t | state), `valid` (n, T) bools, False beyond a chain's end; None: all count. A transition of
probability zero stays exactly zero, and so do its expected counts. Missing steps have scores of zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.latents.forward_backward import Smoothed, absorb, smooth
from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.logs import safe_log
from jaxem.numerics.trees import pairwise_sum

#: Chains of at least this many steps are cut in blocks on an accelerator.
LONG = 4096


def log_partition(
    log_initial: Array,
    log_transition: Array,
    scores: Array,
    valid: Array | None = None,
    n_blocks: int | None = None,
    *,
    hard: bool = False,
) -> Array:
    """(n,) log of the sum over all paths; its gradients are expected starts, transitions and visits.

    The gradient costs one smoother, in forward and reverse mode alike (Baum, Petrie, Soules and Weiss 1970).

    Args:
        log_initial: (K,).
        log_transition: (K, K).
        scores: (K, n, T).
        valid: (n, T) or None.
        n_blocks: blocks in time that run side by side; None: one on a CPU, about the root of T for long chains elsewhere.
        hard: take the most probable path instead of the sum.
    """
    valid = _valid(scores, valid)
    if hard:
        return _log_joint_of_mode(log_initial, log_transition, scores, valid)
    return _log_partition(log_initial, log_transition, scores, valid, n_blocks or _default_blocks(scores.shape[2]))


def _valid(scores: Array, valid: Array | None) -> Array:
    return jnp.ones(scores.shape[1:], bool) if valid is None else jnp.asarray(valid)


def _default_blocks(n_steps: int) -> int:
    return 1 if jax.default_backend() == "cpu" or n_steps < LONG else round(n_steps**0.5)


def _smoothed(log_initial: Array, log_transition: Array, scores: Array, valid: Array, n_blocks: int = 1) -> Smoothed:
    initial, transition, by_time = jnp.exp(log_initial), jnp.exp(log_transition), jnp.moveaxis(scores, 2, 0)
    dtype = jnp.result_type(initial, transition, by_time)
    return smooth(initial.astype(dtype), transition.astype(dtype), by_time.astype(dtype), valid.T, n_blocks)


_log_partition = jax.custom_jvp(
    lambda log_initial, log_transition, scores, valid, n_blocks: pairwise_sum(
        _smoothed(log_initial, log_transition, scores, valid, n_blocks).log_mass
    ),
    nondiff_argnums=(4,),
)


@_log_partition.defjvp
def _(n_blocks, primals, tangents):
    log_initial, log_transition, scores, valid = primals
    d_initial, d_transition, d_scores, _ = tangents
    found = _smoothed(log_initial, log_transition, scores, valid, n_blocks)
    at_start = found.visits[0].T @ jnp.where(log_initial > -jnp.inf, d_initial, 0)
    along = (found.visits * jnp.moveaxis(d_scores, 2, 0)).sum((0, 1))
    transition = jnp.exp(log_transition)
    change = jnp.where(transition > 0, transition * d_transition, 0)
    if found.moves is None:
        moved = pairs_times(found.before, change, found.after)
    else:
        moved = jnp.einsum("ijn,ij->n", found.moves, change, precision=PRECISION)
    return pairwise_sum(found.log_mass), at_start + along + moved


def pairs_times(before: Array, change: Array, after: Array) -> Array:
    """(n,) sum over steps of before change after, linear in `change`.

    Its transpose is the sum over time of before after^T: products of about a thousand terms, which are then added.
    """
    n_steps, k, n = before.shape
    length = max(1, 1024 // n)
    n_pieces = -(-n_steps // length)
    fill = jnp.zeros((n_pieces * length - n_steps, k, n), before.dtype)
    before, after = (jnp.concatenate([x, fill]).reshape(n_pieces, length, k, n) for x in (before, after))
    each = jnp.broadcast_to(change, (n_pieces, k, k))
    return (jnp.einsum("ctin,cij->ctjn", before, each, precision=PRECISION) * after).sum((0, 1, 2))


def _log_joint_of_mode(log_initial: Array, log_transition: Array, scores: Array, valid: Array) -> Array:
    """(n,) log p(x, most probable path)."""
    path = _viterbi(*jax.lax.stop_gradient((log_initial, log_transition, scores)), valid)[0]
    visited = jnp.take_along_axis(scores, path[None], 0)[0]
    moves = log_transition[path[:, :-1], path[:, 1:]]
    return log_initial[path[:, 0]] + jnp.where(valid, visited, 0).sum(1) + jnp.where(valid[:, 1:], moves, 0).sum(1)


# --- what the data say of the states -----------------------------------------------------------
# Of what has probability zero they say nothing: NaN for probabilities, -1 for states.
def _possible(log_mass: Array, valid: Array) -> Array:
    """(n,) whether a chain's observations have a positive probability, from their log-mass (T, n)."""
    return (jnp.isfinite(log_mass) | ~valid.T).all(0)


def posterior(log_initial: Array, log_transition: Array, scores: Array, valid: Array | None = None) -> Array:
    """(K, n, T) smoothed probabilities p(z_t | all x); zero beyond a chain's end."""
    valid = _valid(scores, valid)
    found = _smoothed(log_initial, log_transition, scores, valid)
    answered = _possible(found.log_mass, valid)[:, None] | ~valid
    return jnp.where(answered[None], jnp.moveaxis(found.visits, 0, 2), jnp.nan)


def filtered(log_initial: Array, log_transition: Array, scores: Array, valid: Array | None = None) -> tuple[Array, Array]:
    """(K, n, T) causal probabilities p(z_t | x up to t), NaN from what is impossible on, and (n, T) log p(x_t | x before)."""
    valid = _valid(scores, valid)
    found = _smoothed(log_initial, log_transition, scores, valid)
    possible = jnp.cumsum(~jnp.isfinite(found.log_mass) & valid.T, 0) == 0
    belief = jnp.where(valid.T[:, None], jnp.where(possible[:, None], found.belief, jnp.nan), 0)
    return jnp.moveaxis(belief, 0, 2), found.log_mass.T


def pairwise(log_initial: Array, log_transition: Array, scores: Array, valid: Array | None = None) -> Array:
    """(K, K, n, T - 1) probabilities p(z_t, z_{t+1} | all x), the state before first; zero beyond a chain's end.

    T K^2 numbers a chain: for expected counts, take the gradient of `log_partition` instead.
    """
    valid = _valid(scores, valid)
    found = _smoothed(log_initial, log_transition, scores, valid)
    transition = jnp.exp(log_transition)[:, :, None, None]
    before, after = (jnp.moveaxis(x[1:], 0, 2) for x in (found.before, found.after))
    answered = _possible(found.log_mass, valid)[:, None] | ~valid[:, 1:]
    return jnp.where(answered[None, None], before[:, None] * transition * after[None], jnp.nan)


def update(belief: Array, log_transition: Array, scores: Array) -> tuple[Array, Array]:
    """One causal step: belief (K, n) and scores (K, n) to the belief after, and (n,) log p(x_t | x before)."""
    predicted = jnp.matmul(jnp.exp(log_transition).T, belief, precision=PRECISION)
    return absorb(predicted, scores)


def viterbi(log_initial: Array, log_transition: Array, scores: Array, valid: Array | None = None) -> Array:
    """(n, T) int32, the most probable path (Viterbi 1967); beyond a chain's end its last state."""
    path, best = _viterbi(log_initial, log_transition, scores, _valid(scores, valid))
    return jnp.where(jnp.isfinite(best)[:, None], path, -1)


def _viterbi(log_initial: Array, log_transition: Array, scores: Array, valid: Array) -> tuple[Array, Array]:
    """(n, T) the path, whatever its probability, and (n,) how its last step compares: finite where it has any."""
    by_time, on, log_transition = jnp.moveaxis(scores, 2, 0), valid.T, jnp.asarray(log_transition)

    def step(best: Array, now: tuple[Array, Array]):
        s, on = now
        joint = best[:, None] + log_transition[:, :, None]
        top = joint.max(0) + s
        top = top - jnp.where(jnp.isfinite(top.max(0)), top.max(0), 0)  # or the last digits drown in a long sum
        stay = jnp.arange(len(top), dtype=jnp.int32)[:, None]
        return jnp.where(on, top, best), jnp.where(on, joint.argmax(0).astype(jnp.int32), stay)

    best, origin = jax.lax.scan(step, log_initial[:, None] + by_time[0], (by_time[1:], on[1:]))
    last = best.argmax(0).astype(jnp.int32)

    def back(state: Array, origin: Array):
        return jnp.take_along_axis(origin, state[None], 0)[0], state

    first, rest = jax.lax.scan(back, last, origin, reverse=True)
    return jnp.concatenate([first[None], rest]).T, best.max(0)


def sample_posterior(
    key: Array, log_initial: Array, log_transition: Array, scores: Array, valid: Array | None = None, n_samples: int = 1
) -> Array:
    """(n_samples, n, T) int32 paths drawn from p(z | x): forward filtering, backward sampling (Scott 2002, section 2.2)."""
    valid = _valid(scores, valid)
    found = _smoothed(log_initial, log_transition, scores, valid)
    log_belief, transition = safe_log(found.belief), jnp.asarray(log_transition)

    def draw(key: Array) -> Array:
        keys = jax.random.split(key, scores.shape[2])
        last = jax.random.categorical(keys[-1], log_belief[-1], axis=0).astype(jnp.int32)

        def back(state: Array, now: tuple[Array, Array, Array]):
            key, belief, linked = now
            # Beyond the end the next state says nothing.
            logits = belief + jnp.where(linked, transition[:, state], 0)
            new = jax.random.categorical(key, logits, axis=0).astype(jnp.int32)
            return new, new

        _, rest = jax.lax.scan(back, last, (keys[:-1], log_belief[:-1], valid.T[1:]), reverse=True)
        return jnp.where(possible[None], jnp.concatenate([rest, last[None]]), -1).T

    possible = _possible(found.log_mass, valid)
    return jax.vmap(draw)(jax.random.split(key, n_samples))


def forecast(belief: Array, log_transition: Array, n_steps: int) -> Array:
    """(K, n, n_steps) probabilities of the states 1, 2, ... steps after `belief` (K, n)."""
    turned = jnp.exp(log_transition).T

    def step(belief: Array, _: None):
        new = jnp.matmul(turned, belief, precision=PRECISION)
        return new, new

    return jnp.moveaxis(jax.lax.scan(step, belief, None, length=n_steps)[1], 0, 2)


def stationary(transition: Array) -> Array:
    """(K,) distribution that `transition` (K, K) leaves as it is; one of them where there are several.

    Eigenvalue one is simple for an irreducible chain: pi (I - P) = 0 with sum one is solved as a linear system.
    """
    k = transition.shape[-1]
    system = jnp.eye(k, dtype=transition.dtype) - transition.T + 1
    return jnp.linalg.solve(system, jnp.ones((k,), transition.dtype))


def sample(key: Array, log_initial: Array, log_transition: Array, n: int, n_steps: int) -> Array:
    """(n, T) paths drawn from the chain."""
    first, rest = jax.random.split(key)
    start = jax.random.categorical(first, log_initial, shape=(n,))

    def step(state, key):
        new = jax.random.categorical(key, log_transition[state])
        return new, new

    _, others = jax.lax.scan(step, start, jax.random.split(rest, n_steps - 1))
    return jnp.concatenate([start[None], others]).T
