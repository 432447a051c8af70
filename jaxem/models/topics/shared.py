"""What models of topics share: starting topics, their M-step, words drawn from them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.data.documents import Documents, counts_of, mixed, shared_among_topics, size_of_vocabulary
from jaxem.numerics.linalg import PRECISION
from jaxem.numerics.logs import divided, safe_log
from jaxem.types import Params


def random_topics(key: Array | None, data: Documents | Array, weight: Array, n_topics: int) -> Array:
    """(K, V) from documents shared out at random, but nearly evenly: topics that part slowly end at better maxima."""
    assert key is not None
    counts = counts_of(data)
    share = jax.nn.softmax(jax.random.gumbel(key, (len(counts), n_topics), counts.dtype) / 4, 1)
    topics = shared_among_topics(data, weight[:, None] * counts, share)
    # A word that no document has keeps a little mass: its zero would otherwise be structural.
    topics = topics + jnp.finfo(counts.dtype).eps * topics.sum(1, keepdims=True)
    return topics / topics.sum(1, keepdims=True)


def check_vocabulary(params: Params, data: Documents | Array) -> None:
    """Raise ValueError for documents of another vocabulary than the topics'; of a sparse one less will do."""
    v, given = params["topics"].shape[1], size_of_vocabulary(data)
    if given > v or (given < v and not isinstance(data, Documents)):
        raise ValueError(f"data must be of the topics' vocabulary, V={v} words; got {given}")


def answered(shares: Array, data: Documents | Array, topics: Array) -> Array:
    """(N, K) shares, NaN for a document with a word of probability zero in every topic."""
    anywhere = mixed(data, jnp.ones_like(shares), topics) > 0
    return jnp.where((anywhere | ~(counts_of(data) > 0)).all(1, keepdims=True), shares, jnp.nan)


def word_frequencies(expected: Array, topics: Array) -> Array:
    """(K, V) topics from expected counts (K, V); a topic without words stays as in `topics`."""
    counts = jnp.maximum(expected, 0)
    total = counts.sum(1, keepdims=True)
    return jnp.where(total > 0, divided(counts, total), topics)


def sampled_words(key: Array, shares: Array, topics: Array, n_words: int) -> Array:
    """(n, V) counts of `n_words` words drawn for each document of `shares` (n, K)."""
    mix = safe_log(jnp.matmul(shares, topics, precision=PRECISION))
    words = jax.random.categorical(key, mix[:, None, :], shape=(len(shares), n_words))
    return jax.vmap(lambda w: jnp.bincount(w, length=topics.shape[1]))(words).astype(topics.dtype)
