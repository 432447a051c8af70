"""A discrete character that evolves along a tree: the log-partition by pruning (Felsenstein 1981)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.numerics import PRECISION, safe_log


def transition_matrices(log_jumps: Array, exit: Array) -> Array:
    """(E, S, S) exp(M) with M_ij = exp(log_jumps_ij) and M_ii = exit_i, for each of E branches.

    Every entry of M is an argument of its own: the gradient of a log-likelihood in `log_jumps` is the
    expected number of jumps, that in `exit` the expected time spent (in branch lengths).
    """
    n_states = exit.shape[-1]
    diagonal = jnp.eye(n_states, dtype=bool)
    off = jnp.exp(jnp.where(diagonal, 0, log_jumps))
    return jax.scipy.linalg.expm(jnp.where(diagonal, exit[..., None], off))


def leaf_partials(codes: Array, n_states: int, dtype: jnp.dtype) -> Array:
    """(taxa, S, n) likelihoods of what was seen, all ones for a code outside 0..S-1: a gap."""
    states = jnp.arange(n_states)[:, None]
    seen = codes.T[:, None, :]
    unknown = (seen < 0) | (seen >= n_states)
    return (unknown | (seen == states)).astype(dtype)


def log_partition(transitions: Array, log_root: Array, partials: Array, parents: tuple[int, ...]) -> Array:
    """(n,) log-likelihood of each site.

    Args:
        transitions: (E, S, S), for the branch above each node but the root, rows the parent's state.
        log_root: (S,) log-frequencies at the root.
        partials: (taxa, S, n) likelihoods at the leaves.
        parents: parent of each node; leaves come first, every parent after its children, the root last with -1.
    """
    messages: dict[int, Array] = {}
    scale = jnp.zeros_like(partials[0, 0])
    for node, parent in enumerate(parents):
        below = partials[node] if node < partials.shape[0] else messages.pop(node)
        if parent < 0:
            return safe_log(jnp.matmul(jnp.exp(log_root), below, precision=PRECISION)) + scale
        up = jnp.matmul(transitions[node], below, precision=PRECISION)
        joint = messages[parent] * up if parent in messages else up
        # Products over many taxa underflow: their size goes into a logarithm of its own.
        size = jax.lax.stop_gradient(joint.max(0))
        size = jnp.where(size > 0, size, 1)
        messages[parent] = joint / size
        scale = scale + jnp.log(size)
    raise ValueError("parents must hold one root, marked by -1; got none")
