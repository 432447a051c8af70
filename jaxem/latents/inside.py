"""A stochastic context-free grammar in Chomsky normal form: the log-partition by the inside recursion (Baker 1979)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.logs import lse, safe_log


def log_partition(
    log_binary: Array,
    log_emission: Array,
    codes: Array,
    length: Array,
    spans: Array | None = None,
    *,
    hard: bool = False,
) -> Array:
    """(n,) log of the sum over all parse trees that grow from symbol 0; its gradients are expected uses of the rules.

    The widths of spans are unrolled, and the work grows with T^3: for strings of a few dozen symbols.

    Args:
        log_binary: (S, S, S) log-probabilities of A -> B C.
        log_emission: (S, V) log-probabilities of A -> symbol.
        codes: (n, T) symbols 0..V-1; what lies beyond a string's length may hold anything valid.
        length: (n,) lengths, 1..T.
        spans: (n, T, T, S), added wherever symbol a yields the steps from i to j: in it, at zero, the gradient is the
            probability that a does. None: zero.
        hard: let the most probable tree stand for the sum; the gradients then count what it uses.
    """
    log_rules = log_binary.reshape(log_binary.shape[0], -1)

    def noted(scores: Array, width: int) -> Array:
        return scores if spans is None else scores + jnp.moveaxis(jnp.diagonal(spans, width, 1, 2), 1, 0)

    # span[a, n, i]: log-probability that symbol a yields the symbols i to i + width. left[a, n, i, k]: that it yields those
    # from i to i + k; right: those from i + k + 1 to i + width. All splits of all spans of a width are one array.
    span = noted(log_emission[:, codes], 0)
    left = right = span[..., None]
    whole = [span[0, :, 0]]
    for width in range(1, codes.shape[1]):
        left, right = left[:, :, :-1], right[:, :, 1:]
        span = noted(_sum_out(_pair(left, right, log_rules, hard), -1, hard), width)
        left = jnp.concatenate([left, span[..., None]], -1)
        right = jnp.concatenate([span[..., None], right], -1)
        whole.append(span[0, :, 0])
    return jnp.take_along_axis(jnp.stack(whole), (length - 1)[None], 0)[0]


def _pair(left: Array, right: Array, log_rules: Array, hard: bool) -> Array:
    """(S, ...) log of the sum over B and C of p(A -> B C) left[B] right[C], in probabilities scaled by their maxima."""
    if hard:
        both = (left[:, None] + right).reshape(log_rules.shape[1], *left.shape[1:])
        return _sum_out(jnp.expand_dims(log_rules, range(2, 1 + both.ndim)) + both, 1, hard)
    tops = []
    scaled = []
    for side in (left, right):
        top = jax.lax.stop_gradient(side.max(0))
        top = jnp.where(jnp.isfinite(top), top, 0)
        tops.append(top)
        scaled.append(jnp.exp(side - top))
    both = (scaled[0][:, None] * scaled[1]).reshape(log_rules.shape[1], *left.shape[1:])
    return safe_log(jnp.einsum("ab,b...->a...", jnp.exp(log_rules), both, precision=PRECISION)) + tops[0] + tops[1]


def _sum_out(scores: Array, axis: int, hard: bool) -> Array:
    """Log-sum-exp, or one greatest score: a rule A -> A A makes ties that gradients would share."""
    if hard:
        return jnp.take_along_axis(scores, scores.argmax(axis, keepdims=True), axis).squeeze(axis)
    return lse(scores, axis)
