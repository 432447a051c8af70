"""What is known of a transition matrix before the data: entries that are zero or fixed, and a prior."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import is_traced
from jaxem.numerics.logs import divided
from jaxem.priors import Dirichlet
from jaxem.pytree import struct


@struct
class Transition:
    """A transition matrix of which some is known; `Transition()`: nothing.

    Attributes:
        allowed: (K, K) bools; the other entries are zero and stay exactly zero. None: all.
        fixed: (K, K) probabilities that are known, NaN where they are not. None: none.
        prior: Dirichlet prior on each row, its concentration a number or (K, K); None: none.
    """

    allowed: Any = None
    fixed: Any = None
    prior: Dirichlet | None = None

    def check(self, k: int) -> None:
        """Raise ValueError, naming the row, for concrete entries that no transition matrix of K states has."""
        if is_traced(self):
            return
        for name in ("allowed", "fixed"):
            value = getattr(self, name)
            if value is not None and np.shape(value) != (k, k):
                raise ValueError(f"transition {name} must have shape ({k}, {k}); got {np.shape(value)}")
        if self.prior is not None and np.shape(self.prior.concentration) not in ((), (k, k), (k,)):
            raise ValueError(f"transition prior must be a number or ({k}, {k}); got shape {np.shape(self.prior.concentration)}")
        allowed = self._allowed(k)
        if not np.asarray(allowed).any(1).all():
            row = int(np.argmin(np.asarray(allowed).any(1)))
            raise ValueError(f"transition allowed must leave every state somewhere to go; row {row} is all False")
        if self.fixed is None:
            return
        fixed = np.asarray(self.fixed, float)
        known, total = ~np.isnan(fixed), np.nansum(fixed, 1)
        whole = known.all(1)
        wrong = (np.nan_to_num(fixed) < 0).any(1) | np.where(whole, np.abs(total - 1) > 1e-5, total > 1 + 1e-5)
        wrong |= (known & (fixed > 0) & ~np.asarray(allowed)).any(1)
        if wrong.any():
            row = int(np.argmax(wrong))
            wanted = "sum to 1 where it is known whole, to at most 1 else, with no negative entry or forbidden one"
            raise ValueError(f"transition fixed: row {row} must {wanted}; got {fixed[row]}")

    def _allowed(self, k: int) -> Any:
        return np.ones((k, k), bool) if self.allowed is None else self.allowed

    def free(self, k: int) -> Array:
        """(K, K) which entries are estimated."""
        allowed = jnp.asarray(self._allowed(k))
        return allowed if self.fixed is None else allowed & jnp.isnan(jnp.asarray(self.fixed))

    @property
    def constraint(self) -> sets.Simplex:
        """The set that rows live in."""
        return sets.Simplex() if self.fixed is None else sets.PartSimplex(~jnp.isnan(jnp.asarray(self.fixed)))

    def completed(self, share: Array) -> Array:
        """(K, K) transition matrix: free entries in proportion to `share`, which need not be normalised."""
        free = self.free(share.shape[0])
        known = jnp.zeros_like(share) if self.fixed is None else jnp.nan_to_num(jnp.asarray(self.fixed, share.dtype))
        share = jnp.where(free, share, 0)
        rest = jnp.maximum(1 - known.sum(-1, keepdims=True), 0)
        return known + rest * divided(share, share.sum(-1, keepdims=True))

    def m_step(self, counts: Array, before: Array) -> Array:
        """Relative expected counts; a row never left keeps its probabilities."""
        counts = jnp.where(self.free(counts.shape[0]), jnp.maximum(counts, 0), 0)
        return jnp.where(counts.sum(-1, keepdims=True) > 0, self.completed(counts), before)

    def pseudo_counts(self, like: Array) -> Array | None:
        """(K, K) concentration - 1 where an entry is free."""
        if self.prior is None:
            return None
        return jnp.where(self.free(like.shape[0]), self.prior.pseudo_counts(like), 0)

    def start(self, key: Array | None, like: Array) -> Array:
        """Uniform over what is allowed; with a key rows drawn uniformly, drawn towards staying by a random share.

        Real chains stay: of uniform starts few find the best optimum.
        """
        if key is None:
            return self.completed(jnp.ones_like(like))
        how, stay = jax.random.split(key)
        # Normalised exponentials are uniform on the simplex; a gamma sampler takes seconds to compile.
        rows = self.completed(jax.random.exponential(how, like.shape, like.dtype))
        share = jax.random.uniform(stay, (), like.dtype)
        return self.completed((1 - share) * rows + share * jnp.eye(len(like), dtype=like.dtype))

    def n_free(self, k: int) -> int:
        """Number of free parameters."""
        return int(np.maximum(np.asarray(self.free(k)).sum(1) - 1, 0).sum())

    @property
    def exchangeable(self) -> bool:
        """Whether the order of states means nothing."""
        uneven = self.prior is not None and np.ndim(self.prior.concentration) > 0
        return self.allowed is None and self.fixed is None and not uneven


def banded(n_states: int, below: int = 1, above: int = 1, prior: Dirichlet | None = None) -> Transition:
    """Moves by at most `below` states down and `above` states up."""
    step = np.arange(n_states) - np.arange(n_states)[:, None]
    return Transition(allowed=(step >= -below) & (step <= above), prior=prior)


def left_right(n_states: int, skip: int = 1, prior: Dirichlet | None = None) -> Transition:
    """A chain that stays or moves on by at most `skip` states (Bakis 1976); give it `initial="fixed"` to start in the first."""
    return banded(n_states, 0, skip, prior)


def sticky(n_states: int, stay: float, move: float = 1.0) -> Transition:
    """Dirichlet rows with concentration `stay` on the diagonal and `move` elsewhere: states that last."""
    return Transition(prior=Dirichlet(jnp.where(np.eye(n_states, dtype=bool), stay, move)))
