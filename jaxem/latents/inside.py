"""A stochastic context-free grammar in Chomsky normal form: the log-partition by the inside recursion (Baker 1979)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.numerics import PRECISION, lse, safe_log


def log_partition(log_binary: Array, log_emission: Array, codes: Array, length: Array) -> Array:
    """(n,) log of the sum over all parse trees that grow from symbol 0; its gradients are expected uses of the rules.

    The number of spans grows with T^2 and is unrolled: for strings of a few dozen symbols.

    Args:
        log_binary: (S, S, S) log-probabilities of A -> B C.
        log_emission: (S, V) log-probabilities of A -> symbol.
        codes: (n, T) symbols 0..V-1; what lies beyond a string's length may hold anything valid.
        length: (n,) lengths, 1..T.
    """
    n_symbols, n_steps = log_binary.shape[0], codes.shape[1]
    rules = jnp.exp(log_binary).reshape(n_symbols, -1)
    # inside[w][a, n, i]: log-probability that symbol a yields the w + 1 symbols from i on.
    inside = [log_emission[:, codes]]
    for width in range(1, n_steps):
        n_starts = n_steps - width
        splits = [
            _pair(inside[left][:, :, :n_starts], inside[width - 1 - left][:, :, left + 1 : left + 1 + n_starts], rules)
            for left in range(width)
        ]
        inside.append(lse(jnp.stack(splits)))
    whole = jnp.stack([span[0, :, 0] for span in inside])
    return jnp.take_along_axis(whole, (length - 1)[None], 0)[0]


def _pair(left: Array, right: Array, rules: Array) -> Array:
    """(S, n, P) log of the sum over B and C of p(A -> B C) left[B] right[C], in probabilities scaled by their maxima."""
    tops = []
    scaled = []
    for side in (left, right):
        top = jax.lax.stop_gradient(side.max(0))
        top = jnp.where(jnp.isfinite(top), top, 0)
        tops.append(top)
        scaled.append(jnp.exp(side - top))
    both = (scaled[0][:, None] * scaled[1]).reshape(-1, *left.shape[1:])
    return safe_log(jnp.einsum("ab,bnp->anp", rules, both, precision=PRECISION)) + tops[0] + tops[1]
