"""A Markov chain of discrete states: log-partition and posterior by the scaled forward recursion."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.numerics import PRECISION, latents_are_hard, safe_log


def log_partition(log_initial: Array, log_transition: Array, scores: Array, valid: Array | None = None) -> Array:
    """(n,) log of the sum over all paths; its gradients are expected starts, transitions and visits.

    Probabilities are rescaled at every step (Rabiner 1989, section V.A). A transition of probability zero
    stays exactly zero, and so do its expected counts.

    Args:
        log_initial: (K,).
        log_transition: (K, K), rows the state before.
        scores: (K, n, T) local log-densities.
        valid: (n, T); the steps beyond a sequence's end leave it as it is. None: all count.
    """
    valid = jnp.ones(scores.shape[1:], bool) if valid is None else valid
    transition = jnp.exp(log_transition)
    hard = latents_are_hard()

    def over_states(joint):
        return joint.max(0) if hard else joint.sum(0)

    def predict(belief):
        if hard:
            return (transition[:, :, None] * belief[:, None]).max(0)
        return jnp.matmul(transition.T, belief, precision=PRECISION)

    def absorb(predicted, total, s):
        # The scale is the best score among states that can be reached: a better one that cannot would underflow all.
        reachable = predicted > 0
        top = jax.lax.stop_gradient(jnp.where(reachable, s, -jnp.inf).max(0))
        top = jnp.where(jnp.isfinite(top), top, 0)
        joint = predicted * jnp.exp(jnp.where(reachable, s - top, -jnp.inf))
        mass = over_states(joint)
        return joint / jnp.where(mass > 0, mass, 1), total + safe_log(mass) + top

    def step(carry, now):
        belief, total = carry
        s, on = now
        new_belief, new_total = absorb(predict(belief), total, jnp.where(on, s, 0))
        return (jnp.where(on, new_belief, belief), jnp.where(on, new_total, total)), None

    by_time = jnp.moveaxis(scores, 2, 0)
    start = jnp.broadcast_to(jnp.exp(log_initial)[:, None], by_time.shape[1:])
    first = absorb(start, jnp.zeros_like(by_time[0, 0]), by_time[0])
    (_, total), _ = jax.lax.scan(step, first, (by_time[1:], valid.T[1:]))
    return total


def posterior(log_initial: Array, log_transition: Array, scores: Array, valid: Array | None = None) -> Array:
    """(K, n, T) smoothed probabilities of the states; zero beyond a sequence's end."""
    return jax.grad(lambda s: log_partition(log_initial, log_transition, s, valid).sum())(scores)


def sample(key: Array, log_initial: Array, log_transition: Array, n: int, n_steps: int) -> Array:
    """(n, T) paths drawn from the chain."""
    first, rest = jax.random.split(key)
    start = jax.random.categorical(first, log_initial, shape=(n,))

    def step(state, key):
        new = jax.random.categorical(key, log_transition[state])
        return new, new

    _, others = jax.lax.scan(step, start, jax.random.split(rest, n_steps - 1))
    return jnp.concatenate([start[None], others]).T
