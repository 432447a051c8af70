"""Stochastic context-free grammars; EM is the inside-outside algorithm (Baker 1979; Lari and Young 1990)."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.sequences import Sequences, as_sequences
from jaxem.data.validation import check_positive_int, check_rows, numeric
from jaxem.latents import inside
from jaxem.model import Model
from jaxem.numerics.logs import divided, safe_log
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows


@struct
class Grammar(Model):
    """Rules A -> B C and A -> terminal, each with a probability; strings grow from symbol 0.

    Parameter: `rules` (S, S^2 + V), a row for each symbol: its S^2 pairs in row order, then the V terminals; rows sum
    to one and zeros stay exactly zero. `binary` and `emission` give the parts.
    Data: `jaxem.sequences` of codes 0..V-1.

    Attributes:
        n_symbols: S.
        n_terminals: V.
        allowed: (S, S^2 + V) bools, rules that may occur. None: all.
    """

    n_symbols: int = static()
    n_terminals: int = static()
    allowed: Any = None

    constraints: ClassVar[Any] = {"rules": sets.Simplex()}

    def binary(self, rules: Array) -> Array:
        """(S, S, S) part of A -> B C."""
        s = self.n_symbols
        return rules[:, : s * s].reshape(s, s, s)

    def emission(self, rules: Array) -> Array:
        """(S, V) part of A -> terminal."""
        return rules[:, self.n_symbols**2 :]

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaf `log_rules`: t = how often each rule was used."""
        return {"log_rules": safe_log(params["rules"])}

    def log_marginal(self, natural: PyTree, data: PyTree, rows: Rows) -> Array:
        data, log_rules = as_sequences(data, single=False), natural["log_rules"]
        rules = self.binary(log_rules), self.emission(log_rules)
        return inside.log_partition(*rules, data.filled(), data.length, hard=rows.hard)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative expected counts; a symbol never used keeps its rules."""
        counts = jnp.maximum(stats["log_rules"], 0)
        total = counts.sum(1, keepdims=True)
        return {"rules": jnp.where(total > 0, divided(counts, total), params["rules"])}

    def validate(self, data: Any) -> Sequences:
        """Padded codes and lengths.

        Raises:
            ValueError: for symbols beyond the alphabet, lengths that do not fit, or rules allowed of a wrong shape.
        """
        check_positive_int(self.n_symbols, "n_symbols")
        check_positive_int(self.n_terminals, "n_terminals")
        shape = (self.n_symbols, self.n_symbols**2 + self.n_terminals)
        if self.allowed is not None and (np.shape(self.allowed) != shape or not np.any(self.allowed, 1).all()):
            raise ValueError(f"allowed must have shape {shape}, something in every row; got {np.shape(self.allowed)}")
        data = as_sequences(data)
        x, length = numeric(data.x, "data x"), numeric(data.length, "data length")
        if x.ndim != 2 or not x.shape[1] or length.shape != x.shape[:1] or (length < 1).any() or (length > x.shape[1]).any():
            raise ValueError(f"data must be codes x (B, T) and lengths in 1..T; got shapes {x.shape} and {length.shape}")
        valid = (x >= 0) & (x < self.n_terminals) & (x == np.floor(x)) | ~np.asarray(data.valid())
        check_rows(x, valid, f"codes 0..{self.n_terminals - 1}", "data x")
        return Sequences(np.where(data.valid(), x, 0).astype(np.int32), length.astype(np.int32))

    def template(self, data: PyTree) -> Params:
        del data
        shape = (self.n_symbols, self.n_symbols**2 + self.n_terminals)
        share = jnp.ones(shape) if self.allowed is None else jnp.asarray(self.allowed, jnp.zeros(()).dtype)
        return {"rules": share / share.sum(1, keepdims=True)}

    def initialize(self, key: Array | None, data: PyTree, weight: Array) -> Params:
        """Random rules, as many pairs as terminals: a grammar that always branches would never end."""
        assert key is not None
        s = self.n_symbols
        share = jax.random.exponential(key, (s, s * s + self.n_terminals), weight.dtype)
        share = jnp.where(self.template(data)["rules"] > 0, share, 0)
        parts = [share[:, : s * s], share[:, s * s :]]
        share = jnp.concatenate([divided(part, part.sum(1, keepdims=True)) for part in parts], 1)
        return {"rules": share / share.sum(1, keepdims=True)}

    def n_free_params(self, data: PyTree) -> int:
        return int((np.asarray(self.template(data)["rules"]) > 0).sum()) - self.n_symbols

    # --- after the fit -----------------------------------------------------------------------
    def spans(self, params: Params, data: Any) -> Array:
        """(B, T, T, S) probability that a symbol yields the steps from i to j of a string (Baker 1979)."""
        return _spans(self, params, as_sequences(data), hard=False)

    def predict(self, params: Params, data: Any) -> Array:
        """(B, T, T) the most probable parse: the symbol that yields the steps from i to j, -1 where none does."""
        taken = _spans(self, params, as_sequences(data), hard=True)
        return jnp.where(taken.max(-1) > 0, taken.argmax(-1), -1)  # NaN is above nothing


@functools.partial(jax.jit, static_argnames="hard")
def _spans(model: Grammar, params: Params, data: Sequences, hard: bool) -> Array:
    log_rules = model.natural(params)["log_rules"]
    given = model.binary(log_rules), model.emission(log_rules), jnp.asarray(data.filled()), data.length
    none = jnp.zeros((*given[2].shape, given[2].shape[1], model.n_symbols), log_rules.dtype)
    found, pull = jax.vjp(lambda spans: inside.log_partition(*given, spans, hard=hard), none)
    (spans,) = pull(jnp.ones_like(found))
    return jnp.where(jnp.isfinite(found)[:, None, None, None], spans, jnp.nan)
