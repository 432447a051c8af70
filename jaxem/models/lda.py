"""Latent Dirichlet allocation by variational EM (Blei, Ng and Jordan 2003)."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import digamma, gammaln

from jaxem import constraints as sets
from jaxem.families.poisson import validate_counts
from jaxem.numerics import PRECISION, safe_log
from jaxem.priors import Dirichlet
from jaxem.types import Model, Params, Rows, static, struct
from jaxem.validation import check_positive_int

PyTree = Any


@struct
class LDA(Model):
    """Words of a document are drawn from topics mixed in proportions ~ Dirichlet(alpha).

    The log-likelihood is bounded below at a Dirichlet(gamma_n) for each document n; `local` is gamma (N, K).
    Parameters: `topics` (K, V) and `alpha` (K,). Data: (N, V) counts of words.

    Attributes:
        n_topics: K.
        alpha: concentration with which a fit starts, and stays unless `learn_alpha`; None is 1 / K.
        prior: Dirichlet prior on the topics, or None.
        learn_alpha: whether the M-step ascends the bound in alpha too.
        inner_steps: updates of gamma in one E-step. Few, from where the last one ended, is best.
    """

    n_topics: int = static()
    alpha: float | Array | None = None
    prior: Dirichlet | None = None
    learn_alpha: bool = static(default=False)
    inner_steps: int | Array = 5

    is_bound: ClassVar[bool] = True
    exchangeable: ClassVar[str] = "n_topics"

    @property
    def constraints(self) -> dict[str, Any]:
        return {"topics": sets.Simplex(), "alpha": sets.Positive() if self.learn_alpha else sets.Fixed()}

    @property
    def ascended(self) -> dict[str, bool]:
        return {"topics": False, "alpha": self.learn_alpha}

    @property
    def m_step_is_maximum(self) -> bool:
        return not self.learn_alpha

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaves `log_topics` (K, V), `concentration` (K,) with t = E log theta, and `log_normalizer` with t = 1."""
        alpha = params["alpha"]
        normalizer = gammaln(alpha.sum()) - gammaln(alpha).sum()
        return {"log_topics": safe_log(params["topics"]), "concentration": alpha, "log_normalizer": normalizer}

    def pack(self, natural: PyTree) -> PyTree:
        return {**natural, "topics": jnp.exp(natural["log_topics"])}

    def local(self, natural: PyTree, data: Array, previous: Array | None) -> Array:
        """(n, K) gamma after `inner_steps` updates (equations 6 and 7), each of which raises a document's bound."""
        alpha, topics = natural["concentration"], natural["topics"]
        if previous is None:
            previous = alpha + data.sum(1, keepdims=True) / self.n_topics

        def update(_, gamma):
            share, mixed, _ = _mix(gamma, topics)
            ratio = data / jnp.where(mixed > 0, mixed, 1)
            return alpha + share * jnp.matmul(ratio, topics.T, precision=PRECISION)

        return jax.lax.fori_loop(0, self.inner_steps, update, previous)

    def log_marginal(self, natural: PyTree, data: Array, rows: Rows) -> Array:
        """(n,) the bound (equation 15, with the multinomial coefficients left out), phi maximised at gamma."""
        gamma = rows.local
        _, mixed, top = _mix(gamma, natural["topics"])
        expected = digamma(gamma) - digamma(gamma.sum(1, keepdims=True))
        present = data > 0
        words = jnp.where(present, data * safe_log(jnp.where(present, mixed, 1)), 0).sum(1) + data.sum(1) * top[:, 0]
        # log p(theta) - log q(theta): the -1 of alpha - 1 and of gamma - 1 cancel.
        entropy = gammaln(gamma).sum(1) - gammaln(gamma.sum(1)) - (gamma * expected).sum(1)
        return words + natural["log_normalizer"] + (natural["concentration"] * expected).sum(1) + entropy

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative frequencies of the words (equation 9); a topic without words stays."""
        counts = jnp.maximum(stats["log_topics"], 0)
        total = counts.sum(1, keepdims=True)
        return {**params, "topics": jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), params["topics"])}

    def pseudo_stats(self, params: Params) -> PyTree | None:
        if self.prior is None:
            return None
        zero = jnp.zeros_like(params["alpha"])
        counts = self.prior.pseudo_counts(params["topics"])
        return {"log_topics": counts, "concentration": zero, "log_normalizer": zero[0]}

    def validate(self, data: Any) -> np.ndarray:
        """(N, V) counts.

        Raises:
            ValueError: for a wrong shape or what is no count.
        """
        check_positive_int(self.n_topics, "n_topics")
        array = validate_counts(data)
        if array.ndim != 2:
            raise ValueError(f"data must have shape (N, V), one row of word counts for each document; got {array.shape}")
        return array

    def blank(self, data: Array) -> Params:
        k, v = self.n_topics, data.shape[1]
        alpha = jnp.asarray(1 / k if self.alpha is None else self.alpha, data.dtype)
        return {"topics": jnp.full((k, v), 1 / v, data.dtype), "alpha": jnp.broadcast_to(alpha, (k,))}

    def initialize(self, key: Array | None, data: Array, weight: Array) -> Params:
        """Documents shared out at random, each topic smoothed by one document's worth of the whole corpus."""
        assert key is not None
        blank = self.blank(data)
        # Softmax of spread-out Gumbel draws: nearly one topic a document, and quick to compile.
        share = jax.nn.softmax(4 * jax.random.gumbel(key, (data.shape[0], self.n_topics), data.dtype), 1)
        counts = jnp.matmul((weight[:, None] * share).T, data, precision=PRECISION)
        topics = counts + (weight @ data) / weight.sum()
        # A word that no document has keeps a little mass: its zero would otherwise be structural.
        topics = topics + jnp.finfo(data.dtype).eps * topics.sum(1, keepdims=True)
        return {**blank, "topics": topics / topics.sum(1, keepdims=True)}

    def posterior(self, params: Params, data: Array, n_steps: int = 100) -> Array:
        """(N, K) expected proportions of topics, after `n_steps` updates from a cold start."""
        gamma = self._gamma(params, data, n_steps)
        return gamma / gamma.sum(1, keepdims=True)

    def log_prob(self, params: Params, data: Array, n_steps: int = 100) -> Array:
        """(N,) the bound, after `n_steps` updates from a cold start."""
        return self.log_marginal(self.pack(self.natural(params)), data, Rows(local=self._gamma(params, data, n_steps)))

    def _gamma(self, params: Params, data: Array, n_steps: int) -> Array:
        longer = LDA(self.n_topics, self.alpha, self.prior, self.learn_alpha, n_steps)
        return longer.local(self.pack(self.natural(params)), data, None)

    def n_free_params(self, data: Array) -> int:
        return self.n_topics * (data.shape[1] - 1) + (self.n_topics if self.learn_alpha else 0)

    def sample(self, key: Array, params: Params, n: int, n_words: int = 100) -> Array:
        """(n, V) counts of documents of `n_words` words."""
        first, second = jax.random.split(key)
        theta = jax.random.dirichlet(first, params["alpha"], (n,), params["alpha"].dtype)
        mixed = safe_log(jnp.matmul(theta, params["topics"], precision=PRECISION))
        words = jax.random.categorical(second, mixed[:, None, :], shape=(n, n_words))
        count = lambda w: jnp.bincount(w, length=params["topics"].shape[1])  # noqa: E731
        return jax.vmap(count)(words).astype(theta.dtype)

    def sample_like(self, key: Array, params: Params, data: Array) -> Array:
        """Documents of as many words as those in `data`."""
        first, second = jax.random.split(key)
        theta = jax.random.dirichlet(first, params["alpha"], (data.shape[0],), params["alpha"].dtype)
        mixed = jnp.matmul(theta, params["topics"], precision=PRECISION)
        return jax.random.multinomial(second, data.sum(1), mixed, dtype=theta.dtype)


def _mix(gamma: Array, topics: Array) -> tuple[Array, Array, Array]:
    """exp(E log theta - top) (n, K), its mixture of the topics (n, V), and top (n, 1), against underflow."""
    expected = digamma(gamma) - digamma(gamma.sum(1, keepdims=True))
    top = expected.max(1, keepdims=True)
    share = jnp.exp(expected - top)
    return share, jnp.matmul(share, topics, precision=PRECISION), top
