"""Nucleotide substitution along a given tree (Felsenstein 1981)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.alignment import MEANS
from jaxem.data.validation import check_rows, numeric
from jaxem.latents import tree
from jaxem.model import Model
from jaxem.models.phylogeny.rate_matrix import JC, N_STATES, RateMatrix, speed
from jaxem.models.phylogeny.site_rates import OneRate
from jaxem.numerics.logs import divided, lse, most_probable, safe_log, softmax
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows

#: Rounds of conditional maximisations in one M-step, which cost next to nothing.
SWEEPS = 10


@struct
class Substitution(Model):
    """Sites evolve along a tree independently of each other, by a Markov process in continuous time.

    The E-step needs no algorithm of its own: with every entry of Q free on every branch, the gradient of the
    log-likelihood is the expected number of substitutions of each kind and the expected time with each nucleotide.
    The M-step maximises over branch lengths, classes' rates, exchanges and frequencies in turn, each in closed
    form (Holmes and Rubin 2002; Meng and Rubin 1993), then scales Q to one expected substitution.

    Parameters: `lengths` (E,), expected substitutions a site, for the branch above each node but the root; those of
    the rate matrix; those of the sites' rates. Data: (N, taxa) integer codes of site patterns, 0..3 for A, C, G, T,
    4..13 for IUPAC's R, Y, S, W, K, M, B, D, H, V, anything else for a gap (see `jaxem.read_alignment`); how often a
    pattern occurs is its weight. Where Q is reversible, the likelihood does not depend on where along a branch the
    root is put, so of two branches at a root with two children only the sum is identified: let the root have three.

    Attributes:
        parents: parent of each node (see `jaxem.read_newick`). Leaves come first, in the order of the data's
            columns; every parent comes after its children; the root is last, with parent -1.
        rates: the rate matrix: `JC()`, `F81()`, `HKY()`, `GTR()` or `UNREST()`.
        sites: how rates differ among sites: `OneRate()`, `GammaRates(4)` or `FreeRates(4)`.
    """

    parents: tuple[int, ...] = static()
    rates: RateMatrix = JC()
    sites: OneRate = OneRate()

    @property
    def constraints(self) -> dict[str, Any]:
        return {"lengths": sets.NonNegative(), **self.rates.constraints, **self.sites.constraints}

    @property
    def m_step_is_maximum(self) -> bool:  # type: ignore[override]
        """Of branch lengths alone; conditional maxima of several things, one after another, approach the joint one."""
        return self.rates.n_free_params + self.sites.n_free_params == 0

    @property
    def needs_key(self) -> bool:  # type: ignore[override]
        return self.sites.needs_key

    @property
    def n_taxa(self) -> int:
        """Number of leaves."""
        return tree.n_leaves(self.parents)

    def natural(self, params: Params) -> dict[str, Array]:
        """Natural parameters, of C classes of sites and E branches.

        Leaves `log_jumps` (C, E, 4, 4), t = substitutions; `exit` (C, E, 4), t = dwell times; `log_root` (4,),
        t = nucleotides at the root; `log_weights` (C,), t = sites.
        """
        rates, weights = self.sites.classes(params)
        rate = rates[:, None, None, None] * params["lengths"][:, None, None] * self.rates.matrix(params)
        off = ~np.eye(N_STATES, dtype=bool)
        return {
            "log_jumps": jnp.where(off, safe_log(jnp.where(off, rate, 1)), 0),
            "exit": jnp.diagonal(rate, axis1=-2, axis2=-1),
            "log_root": safe_log(self.rates.parts(params)[1]),
            "log_weights": safe_log(weights),
        }

    def pack(self, natural: PyTree) -> PyTree:
        return {**natural, "transitions": tree.transition_matrices(natural["log_jumps"], natural["exit"])}

    def log_marginal(self, natural: PyTree, data: Array, rows: Rows) -> Array:
        del rows
        return lse(self._by_class(natural, _partials(data, natural["log_root"].dtype)))

    def _by_class(self, natural: PyTree, partials: Array) -> Array:
        """(C, n) log-probabilities of class and site."""
        pruned = lambda transitions: tree.log_partition(transitions, natural["log_root"], partials, self.parents)  # noqa: E731
        return jax.vmap(pruned)(natural["transitions"]) + natural["log_weights"][:, None]

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Expected substitutions over expected exposure, for one thing after another; then the scale is made one."""
        jumps = jnp.maximum(stats["log_jumps"], 0)
        dwell, root = jnp.maximum(stats["exit"], 0), jnp.maximum(stats["log_root"], 0)
        by_class, by_branch, by_kind = jumps.sum((1, 2, 3)), jumps.sum((0, 2, 3)), jumps.sum((0, 1))

        def sweep(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
            lengths, rates, exchange, frequencies = state
            exits = -jnp.diagonal(self.rates.unscaled(exchange, frequencies))
            exposure = dwell @ exits  # (C, E)
            lengths = jnp.where(rates @ exposure > 0, divided(by_branch, rates @ exposure), lengths)
            rates = self.sites.update(rates, by_class, exposure @ lengths)
            time = jnp.einsum("c,cei,e->i", rates, dwell, lengths)
            return lengths, rates, *self.rates.update(exchange, frequencies, by_kind, time, root)

        exchange, frequencies = self.rates.parts(params)
        scale = speed(self.rates.unscaled(exchange, frequencies), frequencies)
        start = params["lengths"] / scale, self.sites.classes(params)[0], exchange, frequencies
        lengths, rates, exchange, frequencies = jax.lax.fori_loop(0, SWEEPS, sweep, start)

        counts = jnp.maximum(stats["log_weights"], 0)
        scale = speed(self.rates.unscaled(exchange, frequencies), frequencies) * (counts @ rates) / counts.sum()
        new = {"lengths": lengths * scale, "exchange": exchange / exchange.sum(), "frequencies": frequencies}
        exposure = jnp.einsum("cei,i,e->c", dwell, -jnp.diagonal(self.rates.unscaled(exchange, frequencies)), lengths)
        new |= self.sites.m_step(params, rates, by_class, exposure, counts)
        return {name: new[name] for name in params}

    def validate(self, data: Any) -> np.ndarray:
        """(N, taxa) int32.

        Raises:
            ValueError: for parents that are no tree in the order asked for, or data that do not fit it.
        """
        count = len(self.parents)
        ordered = all(node < parent < count for node, parent in enumerate(self.parents[:-1]))
        leaves_first = set(range(self.n_taxa)).isdisjoint(self.parents)
        if count < 2 or self.parents[-1] != -1 or not ordered or not leaves_first:
            raise ValueError(
                f"parents must list leaves first, children before parents, the root last as -1; got {self.parents}"
            )
        self.rates.check()
        array = numeric(data, "data")
        if array.ndim != 2 or array.shape[1] != self.n_taxa:
            raise ValueError(f"data must have shape (N, {self.n_taxa}), a column for each leaf; got shape {array.shape}")
        check_rows(array, np.isfinite(array) & (array == np.floor(array)), "integer codes")
        return array.astype(np.int32)

    def template(self, data: Array) -> Params:
        del data
        dtype = jnp.zeros(()).dtype
        lengths = jnp.full((len(self.parents) - 1,), 0.1, dtype)
        return {"lengths": lengths, **self.rates.template(dtype), **self.sites.template(dtype)}

    def initialize(self, key: Array | None, data: Array, weight: Array) -> Params:
        """Short branches of one length, equal exchanges, frequencies as counted in the data."""
        seen = _partials(data, weight.dtype)
        known = seen.sum(1, keepdims=True) < N_STATES
        counted = jnp.where(known, seen / seen.sum(1, keepdims=True), 0).sum(0) @ weight
        lengths = jnp.full((len(self.parents) - 1,), 0.1, weight.dtype)
        return {"lengths": lengths, **self.rates.initialize(counted), **self.sites.initialize(key, weight.dtype)}

    def n_free_params(self, data: Array) -> int:
        del data
        loose = self.rates.reversible and self.parents.count(len(self.parents) - 1) == 2
        return len(self.parents) - 1 - loose + self.rates.n_free_params + self.sites.n_free_params

    def posterior(self, params: Params, data: Array) -> Array:
        """(N, inner nodes, 4) probabilities of the nucleotides at each inner node, in the order of `parents`."""
        natural = self.pack(self.natural(params))
        leaves = _partials(jnp.asarray(data), natural["log_root"].dtype)
        unseen = jnp.ones((len(self.parents) - self.n_taxa, *leaves.shape[1:]), leaves.dtype)
        found, pull = jax.vjp(lambda inner: lse(self._by_class(natural, jnp.concatenate([leaves, inner]))), unseen)
        (probs,) = pull(jnp.ones_like(found))
        return jnp.moveaxis(jnp.where(jnp.isfinite(found)[None, None], probs, jnp.nan), -1, 0)

    def predict(self, params: Params, data: Array) -> Array:
        """(N, inner nodes) most probable nucleotide at each inner node."""
        return most_probable(self.posterior(params, data))

    def class_posterior(self, params: Params, data: Array) -> Array:
        """(N, C) probabilities of the classes of sites."""
        natural = self.pack(self.natural(params))
        return softmax(self._by_class(natural, _partials(jnp.asarray(data), natural["log_root"].dtype))).T

    def site_rates(self, params: Params, data: Array) -> Array:
        """(N,) expected rate of each site given its data."""
        return self.class_posterior(params, data) @ self.sites.classes(params)[0]

    def sample(self, key: Array, params: Params, n: int) -> Array:
        """(n, taxa) codes, without gaps."""
        natural = self.pack(self.natural(params))
        first, second = jax.random.split(key)
        classes = jax.random.categorical(first, natural["log_weights"], shape=(n,))
        return tree.sample(second, natural["transitions"][classes], natural["log_root"], self.parents)


def _partials(codes: Array, dtype: Any) -> Array:
    return tree.leaf_partials(codes, N_STATES, dtype, MEANS)
