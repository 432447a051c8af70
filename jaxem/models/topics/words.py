"""Models of topics on documents that they have not seen, and the words that stand for a topic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.documents import Documents, checked, counts_of, mixed
from jaxem.numerics.logs import safe_log
from jaxem.types import Params


def split_words(key: Array, data: Any, share: float = 0.5) -> tuple[Any, Any]:
    """Each document in two, word by word at random: one part to see, one to foretell.

    Args:
        key: JAX random key.
        data: documents, or (N, V) counts.
        share: probability with which each occurrence of a word falls to the first part.

    Returns:
        Two corpora of the same form, whose counts add up to those of `data`.

    Raises:
        ValueError: for a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie strictly between 0 and 1; got {share}")
    data = checked(data)
    counts = np.asarray(counts_of(data))
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    seen = rng.binomial(counts.astype(np.int64), share).astype(counts.dtype)
    if isinstance(data, Documents):
        return Documents(data.words, seen, data.n_words), Documents(data.words, counts - seen, data.n_words)
    return seen, counts - seen


def completion_perplexity(model: Any, params: Params, seen: Any, unseen: Any) -> float:
    """Perplexity of the words of documents whose other words were seen: exp of minus their mean log-probability.

    Document completion (Wallach, Murray, Salakhutdinov and Mimno 2009, section 5): the shares of the topics are
    inferred from `seen`, with the topics held, and foretell `unseen`. The documents should not have been fitted.

    Args:
        model: `jaxem.LDA` or `jaxem.PLSA`.
        params: its parameters.
        seen: documents, or (N, V) counts; see `split_words`.
        unseen: as many documents.

    Raises:
        ValueError: where the two differ in the number of documents, or nothing is unseen.
    """
    seen, unseen = (jax.tree.map(jnp.asarray, checked(part)) for part in (seen, unseen))
    counts = counts_of(unseen)
    if len(counts) != len(counts_of(seen)) or not counts.sum() > 0:
        wanted = "parts of the same documents, and unseen must hold words"
        got = f"{len(counts_of(seen))} and {len(counts)} documents, {int(counts.sum())} words"
        raise ValueError(f"seen and unseen must be {wanted}; got {got}")
    probability = mixed(unseen, model.posterior(params, seen), params["topics"])
    present = counts > 0
    total = jnp.where(present, counts * safe_log(jnp.where(present, probability, 1)), 0).sum()
    return float(jnp.exp(-total / counts.sum()))


def top_words(params: Params, vocabulary: Sequence[str] | None = None, n: int = 10) -> list[list[Any]]:
    """The n most probable words of each topic, most probable first.

    Args:
        params: with `topics` (K, V).
        vocabulary: V words, or None for their numbers.
        n: how many.

    Raises:
        ValueError: for a vocabulary of another size.
    """
    topics = np.asarray(params["topics"])
    names = range(topics.shape[1]) if vocabulary is None else vocabulary
    if len(names) != topics.shape[1]:
        raise ValueError(f"vocabulary must hold V={topics.shape[1]} words; got {len(names)}")
    return [[names[i] for i in np.argsort(-row, kind="stable")[:n]] for row in topics]
