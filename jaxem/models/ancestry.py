"""Ancestry of individuals in K populations: the ADMIXTURE model (Alexander, Novembre and Lange 2009)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import constraints as sets
from jaxem.data.validation import check_positive_int, check_rows, numeric
from jaxem.model import Model
from jaxem.numerics.blocks import cut, fold
from jaxem.numerics.linalg import PRECISION, cholesky, inverse_lower
from jaxem.numerics.logs import safe_log
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows

#: Allele frequencies keep this far from 0 and 1.
EDGE = 1e-6
#: A corner is drawn with this power of the squared distance from those before.
CHOOSY = 10
#: Rows of genotypes that are looked at together by `initialize`.
TILE = 2_048


@struct
class Ancestry(Model):
    """Each allele of a person comes from one of K ancestral populations, with its frequency of the allele.

    A datum is one SNP: the genotype g_i of person i, in copies of one of the two alleles, is Binomial(2, h_i) with
    h_i = sum_k Q_ik P_k. The ancestries Q are shared by all SNPs; the allele frequencies P of a SNP in the K populations
    are its per-datum parameters, and come with the fit as `result.local` (N, K). EM is that of frappe (Tang, Peng, Wang
    and Risch 2005) with P updated before Q rather than beside it. It creeps: fit with `jaxem.QuasiNewton` or
    `jaxem.Squarem`, as Alexander, Novembre and Lange (2009) do; they move P and Q along together.

    Parameter: `ancestry` Q (I, K), rows that sum to one. Data: (N, I) genotypes 0, 1, 2 of I people at N SNPs, kept in
    int8; what is negative or NaN is missing, and left out. The log-likelihood is what ADMIXTURE reports,
    sum g log h + (2 - g) log(1 - h), without the binomial coefficients; it is that of Q and P together, so that it
    bounds the one at the best P from below.

    Attributes:
        n_populations: K.
        inner_steps: updates of P in one E-step.
    """

    n_populations: int = static()
    inner_steps: int = static(default=1)

    constraints: ClassVar[Any] = {"ancestry": sets.Simplex()}
    local_constraints: ClassVar[Any] = sets.UnitInterval()
    is_bound: ClassVar[bool] = True
    exchangeable: ClassVar[str] = "n_populations"

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaf `log_ancestry` (K, I), t = alleles of each person by population."""
        return {"log_ancestry": safe_log(params["ancestry"]).T}

    def pack(self, natural: PyTree) -> PyTree:
        return {"ancestry": jnp.exp(natural["log_ancestry"])}

    def local(self, natural: PyTree, data: Array, previous: Array | None) -> Array:
        """(n, K) allele frequencies: of the alleles that a population is expected to have given, those of the one kind."""
        ancestry = natural["ancestry"]
        one, other = _copies(data, ancestry.dtype)
        if previous is None:
            seen = one.sum(1, keepdims=True), other.sum(1, keepdims=True)
            overall = (seen[0] + 1) / (seen[0] + seen[1] + 2)
            previous = jnp.broadcast_to(overall, (data.shape[0], self.n_populations))

        def update(_: int, frequencies: Array) -> Array:
            h, rest = _mixed(frequencies, ancestry)
            ones = frequencies * jnp.matmul(one / h, ancestry.T, precision=PRECISION)
            others = (1 - frequencies) * jnp.matmul(other / rest, ancestry.T, precision=PRECISION)
            total = ones + others
            seen = total > 0  # a SNP that nobody has a genotype at
            return jnp.where(seen, jnp.clip(ones / jnp.where(seen, total, 1), EDGE, 1 - EDGE), frequencies)

        return jax.lax.fori_loop(0, self.inner_steps, update, previous)

    def log_marginal(self, natural: PyTree, data: Array, rows: Rows) -> Array:
        ancestry = natural["ancestry"]
        one, other = _copies(data, ancestry.dtype)
        h, rest = _mixed(rows.local, ancestry)
        return (one * jnp.log(h) + other * jnp.log(rest)).sum(1)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Each person's alleles by population, as shares; a person without genotypes keeps theirs."""
        counts = jnp.maximum(stats["log_ancestry"], 0).T
        total = counts.sum(1, keepdims=True)
        return {"ancestry": jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), params["ancestry"])}

    def validate(self, data: Any) -> np.ndarray:
        """(N, I) int8, -1 for what is missing.

        Raises:
            ValueError: for a wrong shape, or what is no genotype.
        """
        check_positive_int(self.n_populations, "n_populations")
        check_positive_int(self.inner_steps, "inner_steps")
        array = numeric(data, "data")
        if array.ndim != 2:
            raise ValueError(f"data must have shape (N, I), a row for each SNP and a column for each person; got {array.shape}")
        missing = np.isnan(array) | (array < 0)
        check_rows(array, missing | np.isin(array, (0, 1, 2)), "genotypes 0, 1, 2, negative or NaN where missing")
        return np.where(missing, -1, array).astype(np.int8)

    def check_fit(self, data: Array) -> None:
        if self.n_populations > data.shape[1]:
            raise ValueError(f"n_populations must be at most the number of people, {data.shape[1]}; got {self.n_populations}")

    def template(self, data: Array) -> Params:
        k = self.n_populations
        return {"ancestry": jnp.full((data.shape[1], k), 1 / k, jnp.zeros(()).dtype)}

    def initialize(self, key: Array | None, data: Array, weight: Array) -> Params:
        """Shares of K extreme people: on the leading principal components of the genotypes people lie within a simplex.

        Its corners are drawn one after another, people far from the span of those before being much the likeliest.
        Where people or SNPs span fewer than K - 1 dimensions there is no such simplex: all shares are random.
        """
        assert key is not None
        first, second = jax.random.split(key)
        scores = _principal_scores(first, data, weight, self.n_populations - 1)
        size = jnp.sqrt((scores**2).sum(1).mean() + 1 / scores.shape[0])
        points = jnp.concatenate([jnp.broadcast_to(size, (scores.shape[0], 1)), scores], 1)
        rest, corners = points, []
        for draw in jax.random.split(second, self.n_populations):
            distance = (rest**2).sum(1)
            corner = jax.random.categorical(draw, CHOOSY * safe_log(distance / distance.max()))
            corners.append(points[corner])
            along = rest[corner] / jnp.sqrt(distance[corner])
            rest = rest - jnp.outer(rest @ along, along)
        corner = jnp.stack(corners)
        lower = inverse_lower(cholesky(corner @ corner.T))
        shares = jnp.clip(points @ corner.T @ lower.T @ lower, 0.01, None)
        drawn = jax.random.exponential(jax.random.fold_in(key, 0), shares.shape, shares.dtype)
        shares = jnp.where(jnp.isfinite(shares).all(), shares, drawn)
        return {"ancestry": shares / shares.sum(1, keepdims=True)}

    def frequencies(self, params: Params, data: Array, n_steps: int = 200) -> Array:
        """(N, K) maximum-likelihood allele frequencies at the given ancestries, for SNPs of a fit or new ones."""
        data = jnp.asarray(data)
        return Ancestry(self.n_populations, n_steps).local(self.pack(self.natural(params)), data, None)

    def log_prob(self, params: Params, data: Array) -> Array:
        """(N,) log-likelihood of each SNP at its maximum-likelihood allele frequencies."""
        local = self.frequencies(params, data)
        return self.log_marginal(self.pack(self.natural(params)), jnp.asarray(data), Rows(local=local))

    def posterior(self, params: Params, data: Array) -> Array:
        """(N, I, K) from which population a person's two alleles at a SNP came: expected shares; Q itself where missing."""
        frequencies, ancestry = self.frequencies(params, data), params["ancestry"]
        one, other = _copies(jnp.asarray(data), ancestry.dtype)
        h, rest = _mixed(frequencies, ancestry.T)
        p = frequencies[:, None, :]
        share = (one / h)[..., None] * p + (other / rest)[..., None] * (1 - p)
        return ancestry * jnp.where((one + other > 0)[..., None], share / 2, 1)

    def predict(self, params: Params, data: Array) -> Array:
        """(N, I) expected genotypes 2 h: what a missing one may be taken for."""
        return 2 * jnp.matmul(self.frequencies(params, data), params["ancestry"].T, precision=PRECISION)

    def n_free_params(self, data: Array) -> int:
        """I (K - 1) ancestries and N K allele frequencies."""
        n, people = data.shape
        return people * (self.n_populations - 1) + n * self.n_populations

    def sample(self, key: Array, params: Params, n: int, frequencies: Array | None = None) -> Array:
        """(n, I) genotypes of n SNPs.

        Args:
            key: random key.
            params: parameters.
            n: number of SNPs.
            frequencies: (n, K) allele frequencies in the populations; None draws them evenly between .05 and .95.
        """
        ancestry = params["ancestry"]
        first, second = jax.random.split(key)
        if frequencies is None:
            frequencies = jax.random.uniform(first, (n, self.n_populations), ancestry.dtype, 0.05, 0.95)
        h = jnp.matmul(frequencies, ancestry.T, precision=PRECISION)
        return (jax.random.uniform(second, (2, *h.shape), h.dtype) < h).sum(0).astype(jnp.int8)


def _copies(data: Array, dtype: Any) -> tuple[Array, Array]:
    """Copies of the one allele and of the other, both 0 where the genotype is missing."""
    known = data >= 0
    return jnp.where(known, data, 0).astype(dtype), jnp.where(known, 2 - data, 0).astype(dtype)


def _mixed(frequencies: Array, ancestry: Array) -> tuple[Array, Array]:
    """(n, I) probabilities of the two alleles, from frequencies (n, K) and ancestries (K, I)."""
    product = lambda x: jnp.matmul(x, ancestry, precision=PRECISION)  # noqa: E731
    return product(frequencies), product(1 - frequencies)


def _principal_scores(key: Array, data: Array, weight: Array, k: int) -> Array:
    """(I, k) orthonormal scores that span people's leading principal components, by subspace iteration over tiles."""
    people = data.shape[1]
    blocks = cut(data, weight, None, TILE)

    def spread(scores: Array) -> Array:
        def term(tile: Array, weight: Array) -> Array:
            known = tile >= 0
            mean = jnp.where(known, tile, 0).sum(1, dtype=weight.dtype) / jnp.maximum(known.sum(1), 1)
            centred = jnp.where(known, tile - mean[:, None], 0)
            return jnp.matmul(
                (centred * weight[:, None]).T, jnp.matmul(centred, scores, precision=PRECISION), precision=PRECISION
            )

        return fold(term, blocks.data, blocks.weight)

    def orthonormal(x: Array) -> Array:
        x = x / jnp.sqrt((x**2).sum(0))
        return jnp.matmul(x, inverse_lower(cholesky(x.T @ x)).T, precision=PRECISION)

    start = orthonormal(jax.random.normal(key, (people, k), weight.dtype))
    return jax.lax.fori_loop(0, 15, lambda _, x: orthonormal(spread(x)), start) if k else start
