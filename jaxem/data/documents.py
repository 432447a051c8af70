"""Bags of words: documents as the words that they hold and how often, and products with topics that only visit those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.data.validation import check_finite, check_positive_int, check_rows, floating, numeric
from jaxem.numerics.linalg import PRECISION
from jaxem.pytree import static, struct


@struct
class Documents:
    """N documents padded to a common number L of distinct words.

    Attributes:
        words: (N, L) int32 in 0..V-1, each word of a document once; padding may be any word.
        counts: (N, L) how often each occurs; 0 in the padding.
        n_words: V, size of the vocabulary.
    """

    words: Any
    counts: Any
    n_words: int = static()


def documents(data: Any, n_words: int | None = None, round_to: int = 1) -> Documents:
    """Documents in sparse form.

    Args:
        data: (N, V) counts, an array or a SciPy sparse matrix; or a sequence of N documents, each the integers of its
            words in any order, repeated as often as they occur, or pairs of word and count, as gensim has them.
        n_words: V for a sequence of documents; None is the largest word plus one.
        round_to: pad to a multiple of this many words, so that corpora of about the same size share one compiled fit.

    Raises:
        ValueError: for no documents, what is no count, or words beyond `n_words`.
        TypeError: for text, and other words that are no integers.
    """
    check_positive_int(round_to, "round_to")
    if hasattr(data, "tocsr"):
        matrix = data.tocsr()
        matrix.sum_duplicates()
        parts = [(matrix.indices[a:b], matrix.data[a:b]) for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)]
        size = matrix.shape[1]
    elif hasattr(data, "shape") or hasattr(data, "to_numpy"):
        array = numeric(data, "data")
        if array.ndim != 2:
            raise ValueError(f"data must have shape (N, V), one row of word counts for each document; got {array.shape}")
        parts = [(np.flatnonzero(row), row[row != 0]) for row in array]
        size = array.shape[1]
    else:
        parts = [_counted(document, i) for i, document in enumerate(data)]
        size = max((int(words.max(initial=-1)) for words, _ in parts), default=-1) + 1
        size = size if n_words is None else check_positive_int(n_words, "n_words")
    if not parts or not size:
        raise ValueError(f"data must hold at least one document and one word; got {len(parts)} documents, {size} words")
    longest = max(1, max(len(words) for words, _ in parts))
    shape = (len(parts), round_to * -(-longest // round_to))
    words, counts = np.zeros(shape, np.int32), np.zeros(shape, np.result_type(*{often.dtype for _, often in parts}))
    for i, (which, often) in enumerate(parts):
        words[i, : len(which)], counts[i, : len(which)] = which, often
    return _checked_documents(Documents(words, counts, size))


def _counted(document: Sequence[Any], i: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct words of one document and their counts."""
    try:
        array = np.asarray(document)
    except ValueError:  # pairs beside single words
        array = np.asarray(document, object)
    if array.dtype.kind in "US":
        raise TypeError(
            f"document {i} must be integers of words; got text: count its words first, e.g. by"
            " sklearn.feature_extraction.text.CountVectorizer().fit_transform(texts), which gives a sparse matrix to pass"
        )
    words, often = (array[:, 0], array[:, 1]) if array.ndim == 2 and array.shape[1] == 2 else (array, None)
    if array.size and (array.dtype.kind not in ("iu" if often is None else "iuf") or words.ndim != 1):
        wanted = "integers of words, or pairs of word and count"
        raise TypeError(f"document {i} must be {wanted}; got dtype {array.dtype} of shape {array.shape}")
    if (words != np.floor(words)).any():
        raise TypeError(f"document {i}: words must be integers; got {words[words != np.floor(words)][0]}")
    distinct, place = np.unique(words.astype(np.int64), return_inverse=True)
    return distinct, np.bincount(place, often, len(distinct)).astype(np.int64 if often is None else array.dtype)


def checked(data: Any) -> Documents | np.ndarray:
    """Documents, or dense counts (N, V), with floating counts; sparse matrices and lists of pairs become documents.

    Raises:
        ValueError: for a wrong shape, what is no count, or a word beyond the vocabulary.
    """
    if not isinstance(data, Documents):
        if hasattr(data, "tocsr") or _is_text_or_pairs(data):
            return documents(data)
        counts = numeric(data, "data")
        if counts.ndim != 2 or not counts.shape[1]:
            raise ValueError(f"data must have shape (N, V), one row of word counts for each document; got {counts.shape}")
        return _checked_counts(counts, "data")
    return _checked_documents(data)


def _is_text_or_pairs(data: Any) -> bool:
    """Whether data are a list of documents, and no table of counts: text, or pairs as gensim has them."""
    first = next(filter(len, data), ()) if isinstance(data, list | tuple) and all(hasattr(x, "__len__") for x in data) else ()
    return isinstance(first, str) or (len(first) > 0 and isinstance(first[0], str | tuple))


def _checked_documents(data: Documents) -> Documents:
    words, counts = numeric(data.words, "data.words"), numeric(data.counts, "data.counts")
    if words.shape != counts.shape or words.ndim != 2 or not words.shape[1] or words.dtype.kind not in "iu":
        raise ValueError(f"data must hold integer words and counts of one shape (N, L); got {words.shape} and {counts.shape}")
    check_rows(words, (words >= 0) & (words < data.n_words), f"in 0..{data.n_words - 1}", "data.words")
    return Documents(words.astype(np.int32), _checked_counts(counts, "data.counts"), data.n_words)


def _checked_counts(counts: np.ndarray, name: str) -> np.ndarray:
    check_finite(counts, name)
    check_rows(counts, (counts >= 0) & (counts == np.floor(counts)), "counts (non-negative integers)", name)
    return floating(counts, name)


def counts_of(data: Documents | Array) -> Array:
    """(N, L) counts, or (N, V) where they are dense."""
    return data.counts if isinstance(data, Documents) else data


def size_of_vocabulary(data: Documents | Array) -> int:
    """V."""
    return data.n_words if isinstance(data, Documents) else data.shape[1]


def mixed(data: Documents | Array, shares: Array, topics: Array) -> Array:
    """Probability of each word of each document, in the shape of its counts: sum over topics of share x topic.

    Linear in both arguments; its adjoints share counts out among topics, without responsibilities for each word.

    Args:
        data: the documents, whose words alone matter.
        shares: (N, K).
        topics: (K, V).
    """
    if isinstance(data, Documents):
        # One fused loop over words: on no backend does the product of three axes reach memory.
        return (topics.T[data.words] * shares[:, None, :]).sum(-1)
    return jnp.matmul(shares, topics, precision=PRECISION)


def shared_among_documents(data: Documents | Array, values: Array, shares: Array, topics: Array) -> Array:
    """(N, K) adjoint of `mixed` in the shares: sum over a document's words of value x topic."""
    return jax.vjp(lambda s: mixed(data, s, topics), shares)[1](values)[0]


def shared_among_topics(data: Documents | Array, values: Array, shares: Array) -> Array:
    """(K, V) adjoint of `mixed` in the topics: sum over documents of value x share."""
    like = jnp.zeros((shares.shape[1], size_of_vocabulary(data)), shares.dtype)
    return jax.vjp(lambda t: mixed(data, shares, t), like)[1](values)[0]
