"""A discrete character that evolves along a tree: the log-partition by pruning (Felsenstein 1981)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.numerics.linalg import PRECISION, expm
from jaxem.numerics.logs import divided, safe_log


def transition_matrices(log_jumps: Array, exit: Array) -> Array:
    """(..., S, S) exp(M) with M_ij = exp(log_jumps_ij) and M_ii = exit_i, for each branch.

    Every entry of M is an argument of its own: the gradient of a log-likelihood in `log_jumps` is the
    expected number of jumps, that in `exit` the expected time spent (in branch lengths).
    """
    diagonal = np.eye(exit.shape[-1], dtype=bool)
    off = jnp.exp(jnp.where(diagonal, 0, log_jumps))
    return expm(jnp.where(diagonal, exit[..., None], off))


def leaf_partials(codes: Array, n_states: int, dtype: Any, means: np.ndarray | None = None) -> Array:
    """(leaves, S, n) likelihoods of what was seen: one for each state that a code stands for.

    Args:
        codes: (n, leaves) integers; outside the rows of `means` they say nothing, as a gap.
        n_states: S.
        dtype: of the likelihoods.
        means: (codes, S) bools; None: each code is a state.
    """
    means = np.eye(n_states, dtype=bool) if means is None else means
    table = jnp.asarray(np.concatenate([means, np.ones((1, n_states), bool)]), dtype)
    known = (codes >= 0) & (codes < len(means))
    return jnp.moveaxis(table[jnp.where(known, codes, len(means))], 0, -1)


def log_partition(transitions: Array, log_root: Array, partials: Array, parents: tuple[int, ...]) -> Array:
    """(n,) log-likelihood of each site.

    Args:
        transitions: (E, S, S), for the branch above each node but the root, rows the parent's state.
        log_root: (S,) log-frequencies at the root.
        partials: (leaves or nodes, S, n) likelihoods of what was seen at each.
        parents: parent of each node; leaves come first, every parent after its children, the root last with -1.
    """
    below: dict[int, Array] = dict(enumerate(partials))
    scale = jnp.zeros_like(partials[0, 0])
    for node, parent in enumerate(parents):
        joint = below.pop(node)
        if node >= n_leaves(parents):
            # Products over many taxa underflow: their size goes into a logarithm of its own.
            size = jax.lax.stop_gradient(joint.max(0))
            joint, scale = divided(joint, size), scale + safe_log(size)
        if parent < 0:
            return safe_log(jnp.matmul(jnp.exp(log_root), joint, precision=PRECISION)) + scale
        up = jnp.matmul(transitions[node], joint, precision=PRECISION)
        below[parent] = below[parent] * up if parent in below else up
    raise ValueError("parents must hold one root, marked by -1; got none")


def n_leaves(parents: tuple[int, ...]) -> int:
    """Number of nodes that are no one's parent."""
    return len(set(range(len(parents))) - set(parents))


def sample(key: Array, transitions: Array, log_root: Array, parents: tuple[int, ...]) -> Array:
    """(n, leaves) states drawn down the tree.

    Args:
        key: random key.
        transitions: (n, E, S, S), of each site.
        log_root: (S,).
        parents: as for `log_partition`.
    """
    n, root = transitions.shape[0], len(parents) - 1
    keys = jax.random.split(key, len(parents))
    states = {root: jax.random.categorical(keys[root], log_root, shape=(n,))}
    for node in reversed(range(root)):
        row = transitions[jnp.arange(n), node, states[parents[node]]]
        states[node] = jax.random.categorical(keys[node], safe_log(row))
    return jnp.stack([states[i] for i in range(n_leaves(parents))], 1).astype(jnp.int32)
