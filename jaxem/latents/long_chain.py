"""Chains too long to hold: local scores and beliefs of one segment of time at a time, O(sqrt(T) K) numbers in all.

A first pass keeps the belief before each segment; a second one goes back over the segments and computes their scores
and beliefs again (checkpoints: Griewank 1992). Values and derivatives of every order are those of `latents.chain`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from jaxem.latents.chain import pairs_times
from jaxem.latents.forward_backward import MANY, forward, smooth_chains
from jaxem.numerics.logs import safe_log
from jaxem.numerics.trees import pairwise_sum
from jaxem.pytree import PyTree

#: On a CPU chains of at least this many local scores are taken in segments.
LONG = 1 << 24


def default_segment(n_states: int, n: int, n_steps: int) -> int:
    """Steps of a segment, L; T where all are held."""
    if jax.default_backend() != "cpu" or n_states * n_steps < LONG:
        return n_steps
    return max(round(n_steps**0.5), MANY // (n_states * n))


def log_partition(
    log_initial: Array,
    log_transition: Array,
    score: Callable[[PyTree, PyTree], Array],
    inputs: PyTree,
    steps: PyTree,
    *,
    valid: Array,
    length: int,
) -> Array:
    """(n,) as `chain.log_partition` of score(inputs, steps); the gradient costs between two and three times as much.

    Args:
        log_initial: (K,).
        log_transition: (K, K).
        score: (inputs, some steps) -> (K, n, L) local scores; hashed by identity.
        inputs: what scores depend on besides the data.
        steps: leaves (n, T, ...).
        valid: (n, T).
        length: steps of a segment, L.
    """
    n, n_steps = valid.shape
    n_segments = -(-n_steps // length)
    index = jnp.arange(n_segments * length).reshape(n_segments, 1, length)

    def cut(x: Array) -> Array:
        """(n, T, ...) to (S, n, L, ...); the first step stands for those beyond T."""
        x = jnp.concatenate([x, jnp.repeat(x[:, :1], n_segments * length - n_steps, 1)], 1)
        return jnp.moveaxis(x.reshape(n, n_segments, length, *x.shape[2:]), 1, 0)

    valid = cut(jnp.asarray(valid)) & (index < n_steps)
    return _log_partition(score, log_initial, log_transition, inputs, jax.tree.map(cut, steps), (valid, valid & (index > 0)))


def _local(score: Callable, inputs: PyTree, steps: PyTree, valid: Array) -> Array:
    """(L, K, n) local scores of one segment."""
    return jnp.moveaxis(jnp.where(valid, score(inputs, steps), 0), 2, 0)


def _ahead(score: Callable, log_initial: Array, log_transition: Array, inputs: PyTree, steps: PyTree, valid: Array):
    """(n,) log-partition; before each segment the belief (zero before the first) and what it predicts: (S, K, n, 1) each."""
    transition = jnp.exp(log_transition)[..., None]

    def segment(carry: tuple[Array, Array], now: tuple[PyTree, Array]):
        coming, predicted = carry
        steps, valid = now
        ahead = forward(transition, _local(score, inputs, steps, valid)[..., None], predicted)
        total = pairwise_sum(jnp.where(valid.T, (safe_log(ahead.mass) + ahead.top)[..., 0], 0))
        return (ahead.belief[-1], ahead.predicted), (total, coming, predicted)

    first = jnp.broadcast_to(jnp.exp(log_initial)[:, None, None], (len(log_initial), valid.shape[1], 1))
    _, (total, coming, predicted) = jax.lax.scan(segment, (jnp.zeros_like(first), first), (steps, valid))
    return pairwise_sum(total), coming, predicted


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_partition(score, log_initial, log_transition, inputs, steps, which) -> Array:
    valid, _ = which  # of the steps, and those that follow one
    return _ahead(score, log_initial, log_transition, inputs, steps, valid)[0]


@partial(_log_partition.defjvp, symbolic_zeros=True)
def _(score, primals, tangents):
    log_initial, log_transition, inputs, steps, (valid, linked) = primals
    d_initial, d_log_transition, d_inputs, d_steps = (_live(t) for t in tangents[:4])
    total, coming, predicted = _ahead(score, log_initial, log_transition, inputs, steps, valid)
    transition = jnp.exp(log_transition)
    change = [jnp.where(transition > 0, transition * d, 0) for d in d_log_transition if d is not None]
    starts = [jnp.where(log_initial > -jnp.inf, d, 0) for d in d_initial if d is not None]

    # Only what the linear map needs is kept from one pass to the next: segments are smoothed again for its transpose.
    @jax.checkpoint
    def segment(message: Array, now: tuple):
        steps, d_steps, valid, linked, coming, predicted, is_first = now
        scores, d_scores = _jvp(partial(_local, score, valid=valid), (inputs, steps), (*d_inputs, *d_steps))
        found, before = smooth_chains(
            transition[..., None], scores[..., None], valid=valid.T[..., None], linked=linked.T[..., None],
            predicted=predicted, coming=coming, last=message,
        )  # fmt: skip
        found = jax.tree.map(lambda x: x[..., 0], found)
        tangent = (found.visits * d_scores).sum((0, 1))
        tangent += sum(pairs_times(found.before, c, found.after) for c in change)
        tangent += sum(jnp.where(is_first, found.visits[0].T @ d, 0) for d in starts)
        return before, tangent

    is_first = jnp.arange(len(valid)) == 0
    last = jnp.ones_like(coming[0])
    xs = (steps, d_steps, valid, linked, coming, predicted, is_first)
    _, tangent = jax.lax.scan(segment, last, xs, reverse=True)
    return total, pairwise_sum(tangent)


def _live(tangents: PyTree) -> list[Array | None]:
    """Tangents leaf by leaf, None where one is zero."""
    leaves = jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))
    return [None if isinstance(t, SymbolicZero) else t for t in leaves]


def _jvp(function: Callable, primals: tuple, tangents: tuple[Array | None, ...]) -> tuple[Array, Array]:
    """As `jax.jvp`, by leaves, of which those without a tangent are constants."""
    leaves, structure = jax.tree.flatten(primals)
    live = [i for i, t in enumerate(tangents) if t is not None]

    def of_live(*given: Array) -> Array:
        changed = dict(zip(live, given, strict=True))
        return function(*jax.tree.unflatten(structure, [changed.get(i, leaf) for i, leaf in enumerate(leaves)]))

    return jax.jvp(of_live, tuple(leaves[i] for i in live), tuple(tangents[i] for i in live))
