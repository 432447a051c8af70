"""Probabilistic latent semantic analysis (Hofmann 1999)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem import constraints as sets
from jaxem.data.documents import Documents, checked, counts_of, mixed, shared_among_documents, size_of_vocabulary
from jaxem.data.validation import check_positive_int
from jaxem.model import Model, one_program
from jaxem.models.topics.shared import answered, check_vocabulary, random_topics, sampled_words, word_frequencies
from jaxem.numerics.logs import divided, safe_log
from jaxem.priors import Dirichlet
from jaxem.pytree import PyTree, static, struct
from jaxem.types import Params, Rows


@struct
class PLSA(Model):
    """Each word of document n comes from topic k with probability theta_nk, and is word v with probability phi_kv.

    log p(document n) = sum over words of count x log sum_k theta_nk phi_kv, the multinomial coefficient left out.
    The shares theta (N, K) belong to single documents: `local`. With them at their maximum this is factorisation of
    the counts in non-negative matrices by the Kullback-Leibler divergence (Gaussier and Goutte 2005).

    Parameter: `topics` phi (K, V). Data: (N, V) counts of words, a SciPy sparse matrix, or `jaxem.documents`.

    Attributes:
        n_topics: K.
        prior: Dirichlet prior on the topics, or None.
        inner_steps: updates of theta in one E-step, from where the last one ended.
    """

    n_topics: int = static()
    prior: Dirichlet | None = None
    inner_steps: int | Array = 1

    # Of the likelihood with each document's shares at their maximum.
    is_bound: ClassVar[bool] = True
    exchangeable: ClassVar[str] = "n_topics"
    constraints: ClassVar[Any] = {"topics": sets.Simplex()}
    local_constraints: ClassVar[Any] = sets.Simplex()

    def natural(self, params: Params) -> dict[str, Array]:
        """Leaf `log_topics` (K, V), t = expected counts of the words by topic."""
        return {"log_topics": safe_log(params["topics"])}

    def pack(self, natural: PyTree) -> PyTree:
        return {"topics": jnp.exp(natural["log_topics"])}

    def local(self, natural: PyTree, data: Documents | Array, previous: Array | None) -> Array:
        """(n, K) theta after `inner_steps` EM updates with the topics held, each of which raises a document."""
        counts, topics = counts_of(data), natural["topics"]
        if previous is None:
            previous = jnp.full((len(counts), self.n_topics), 1 / self.n_topics, topics.dtype)

        def update(_: Any, theta: Array) -> Array:
            expected = theta * shared_among_documents(data, divided(counts, mixed(data, theta, topics)), theta, topics)
            total = expected.sum(1, keepdims=True)
            return jnp.where(total > 0, divided(expected, total), theta)

        return jax.lax.fori_loop(0, self.inner_steps, update, previous)

    def log_marginal(self, natural: PyTree, data: Documents | Array, rows: Rows) -> Array:
        counts = counts_of(data)
        present = counts > 0
        probability = mixed(data, rows.local, natural["topics"])
        return jnp.where(present, counts * safe_log(jnp.where(present, probability, 1)), 0).sum(1)

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative frequencies of the words; a topic without words stays."""
        return {"topics": word_frequencies(stats["log_topics"], params["topics"])}

    def pseudo_stats(self, params: Params) -> PyTree | None:
        return None if self.prior is None else {"log_topics": self.prior.pseudo_counts(params["topics"])}

    def validate(self, data: Any) -> Any:
        """Documents, or (N, V) counts.

        Raises:
            ValueError: for a wrong shape or what is no count.
        """
        check_positive_int(self.n_topics, "n_topics")
        return checked(data)

    def check_columns(self, params: Params, data: Documents | Array) -> None:
        check_vocabulary(params, data)

    def template(self, data: Documents | Array) -> Params:
        v = size_of_vocabulary(data)
        return {"topics": jnp.full((self.n_topics, v), 1 / v, counts_of(data).dtype)}

    def initialize(self, key: Array | None, data: Documents | Array, weight: Array) -> Params:
        """See `jaxem.models.topics.shared.random_topics`."""
        return {"topics": random_topics(key, data, weight, self.n_topics)}

    @one_program
    def posterior(self, params: Params, data: Documents | Array, n_steps: int = 200) -> Array:
        """(N, K) theta with the topics held ("folding in"), after `n_steps` updates from equal shares."""
        return answered(self._shares(params, data, n_steps), data, params["topics"])

    def _shares(self, params: Params, data: Documents | Array, n_steps: int) -> Array:
        return dataclasses.replace(self, inner_steps=n_steps).local(self.pack(self.natural(params)), data, None)

    @one_program
    def log_prob(self, params: Params, data: Documents | Array, n_steps: int = 200) -> Array:
        """(N,) log-probability of each document at its `posterior` shares."""
        local = self._shares(params, data, n_steps)
        return self.log_marginal(self.pack(self.natural(params)), data, Rows(local=local))

    def n_free_params(self, data: Documents | Array) -> int:
        """Topics and shares: the shares are fitted too."""
        n, v = len(counts_of(data)), size_of_vocabulary(data)
        return self.n_topics * (v - 1) + n * (self.n_topics - 1)

    @one_program
    def sample(self, key: Array, params: Params, n: int, n_words: int = 100) -> Array:
        """(n, V) counts of documents of `n_words` words, their shares drawn uniformly."""
        first, second = jax.random.split(key)
        ones = jnp.ones((self.n_topics,), params["topics"].dtype)
        return sampled_words(second, jax.random.dirichlet(first, ones, (n,)), params["topics"], n_words)
