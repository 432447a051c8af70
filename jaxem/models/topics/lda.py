"""Latent Dirichlet allocation by variational EM (Blei, Ng and Jordan 2003)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import digamma, gammaln

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
class LDA(Model):
    """Words of a document are drawn from topics mixed in proportions ~ Dirichlet(alpha).

    The log-likelihood is bounded below at a Dirichlet(gamma_n) for each document n; `local` is gamma (N, K).
    Parameters: `topics` (K, V) and `alpha` (K,). Data: (N, V) counts of words, a SciPy sparse matrix, or
    `jaxem.documents`.

    Attributes:
        n_topics: K.
        alpha: concentration with which a fit starts, and stays unless `learn_alpha`; None is 1 / K.
        prior: Dirichlet prior on the topics, or None.
        learn_alpha: whether the M-step ascends the bound in alpha too, each topic's by itself.
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
    def without_closed_form(self) -> dict[str, bool]:
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

    def local(self, natural: PyTree, data: Documents | Array, previous: Array | None) -> Array:
        """(n, K) gamma after `inner_steps` updates (equations 6 and 7), each of which raises a document's bound."""
        alpha, topics, counts = natural["concentration"], natural["topics"], counts_of(data)
        if previous is None:
            previous = alpha + counts.sum(1, keepdims=True) / self.n_topics

        def update(_: Any, gamma: Array) -> Array:
            share, _ = _shares(gamma)
            ratio = divided(counts, mixed(data, share, topics))
            return alpha + share * shared_among_documents(data, ratio, share, topics)

        return jax.lax.fori_loop(0, self.inner_steps, update, previous)

    def log_marginal(self, natural: PyTree, data: Documents | Array, rows: Rows) -> Array:
        """(n,) the bound (equation 15, with the multinomial coefficients left out), phi maximised at gamma."""
        gamma, counts = rows.local, counts_of(data)
        share, top = _shares(gamma)
        present = counts > 0
        mix = jnp.where(present, mixed(data, share, natural["topics"]), 1)
        words = jnp.where(present, counts * safe_log(mix), 0).sum(1) + counts.sum(1) * top[:, 0]
        # log p(theta) - log q(theta): the -1 of alpha - 1 and of gamma - 1 cancel.
        expected = digamma(gamma) - digamma(gamma.sum(1, keepdims=True))
        entropy = gammaln(gamma).sum(1) - gammaln(gamma.sum(1)) - (gamma * expected).sum(1)
        return words + natural["log_normalizer"] + (natural["concentration"] * expected).sum(1) + entropy

    def m_step(self, stats: PyTree, params: Params) -> Params:
        """Relative frequencies of the words (equation 9); a topic without words stays."""
        return {**params, "topics": word_frequencies(stats["log_topics"], params["topics"])}

    def pseudo_stats(self, params: Params) -> PyTree | None:
        if self.prior is None:
            return None
        zero = jnp.zeros_like(params["alpha"])
        counts = self.prior.pseudo_counts(params["topics"])
        return {"log_topics": counts, "concentration": zero, "log_normalizer": zero[0]}

    def validate(self, data: Any) -> Any:
        """Documents, or (N, V) counts.

        Raises:
            ValueError: for a wrong shape or what is no count, an alpha that is not positive.
        """
        check_positive_int(self.n_topics, "n_topics")
        if self.alpha is not None and not np.all(np.asarray(self.alpha) > 0):
            raise ValueError(f"alpha must be positive; got {self.alpha}")
        return checked(data)

    def check_columns(self, params: Params, data: Documents | Array) -> None:
        check_vocabulary(params, data)

    def template(self, data: Documents | Array) -> Params:
        k, v, dtype = self.n_topics, size_of_vocabulary(data), counts_of(data).dtype
        alpha = jnp.asarray(1 / k if self.alpha is None else self.alpha, dtype)
        return {"topics": jnp.full((k, v), 1 / v, dtype), "alpha": jnp.broadcast_to(alpha, (k,))}

    def initialize(self, key: Array | None, data: Documents | Array, weight: Array) -> Params:
        """See `jaxem.models.topics.shared.random_topics`."""
        return {**self.template(data), "topics": random_topics(key, data, weight, self.n_topics)}

    @one_program
    def posterior(self, params: Params, data: Documents | Array, n_steps: int = 100) -> Array:
        """(N, K) expected shares of the topics, after `n_steps` updates from a cold start."""
        gamma = self._gamma(params, data, n_steps)
        return answered(gamma / gamma.sum(1, keepdims=True), data, params["topics"])

    @one_program
    def log_prob(self, params: Params, data: Documents | Array, n_steps: int = 100) -> Array:
        """(N,) the bound, after `n_steps` updates from a cold start."""
        return self.log_marginal(self.pack(self.natural(params)), data, Rows(local=self._gamma(params, data, n_steps)))

    def _gamma(self, params: Params, data: Documents | Array, n_steps: int) -> Array:
        return dataclasses.replace(self, inner_steps=n_steps).local(self.pack(self.natural(params)), data, None)

    def n_free_params(self, data: Documents | Array) -> int:
        return self.n_topics * (size_of_vocabulary(data) - 1) + (self.n_topics if self.learn_alpha else 0)

    @one_program
    def sample(self, key: Array, params: Params, n: int, n_words: int = 100) -> Array:
        """(n, V) counts of documents of `n_words` words."""
        first, second = jax.random.split(key)
        theta = jax.random.dirichlet(first, params["alpha"], (n,), params["alpha"].dtype)
        return sampled_words(second, theta, params["topics"], n_words)


def _shares(gamma: Array) -> tuple[Array, Array]:
    """exp E log theta up to a factor of each document, (n, K), and the logarithm of that factor, (n, 1)."""
    expected = digamma(gamma) - digamma(gamma.sum(1, keepdims=True))
    top = expected.max(1, keepdims=True)
    return jnp.exp(expected - top), top
