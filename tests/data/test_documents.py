"""Documents as counts, sparse matrices or lists of words: one corpus, and products that visit only the words there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import jaxem
from jaxem.data.documents import mixed, shared_among_documents, shared_among_topics

pytestmark = pytest.mark.usefixtures("x64")


def corpus(n=24, v=20, k=3, words=60):
    rng = np.random.default_rng(0)
    topics, shares = rng.dirichlet(np.full(v, 0.2), k), rng.dirichlet(np.full(k, 0.3), n)
    return np.stack([rng.multinomial(words, t @ topics) for t in shares]).astype(float)


def test_three_forms_of_one_corpus():
    x = corpus()
    x[3] = 0  # an empty document
    lists = [np.repeat(np.arange(20), row.astype(int))[::-1] for row in x]
    forms = [jaxem.documents(x), jaxem.documents(scipy.sparse.coo_matrix(x)), jaxem.documents(lists, n_words=20)]
    for docs in forms:
        dense = np.zeros((24, 20))
        np.add.at(dense, (np.arange(24)[:, None], docs.words), docs.counts)
        np.testing.assert_array_equal(dense, x)
        assert docs.n_words == 20 and docs.words.dtype == np.int32
    assert jaxem.documents(x, round_to=8).words.shape[1] % 8 == 0


def test_products_visit_only_the_words_there():
    x = corpus()
    docs = jax.tree.map(jnp.asarray, jaxem.documents(x))
    rng = np.random.default_rng(1)
    shares, topics = jnp.asarray(rng.dirichlet(np.ones(3), 24)), jnp.asarray(rng.dirichlet(np.ones(20), 3))
    dense = mixed(jnp.asarray(x), shares, topics)
    np.testing.assert_allclose(mixed(docs, shares, topics), jnp.take_along_axis(dense, docs.words, 1), rtol=1e-12)
    for form, counts in ((docs, docs.counts), (jnp.asarray(x), jnp.asarray(x))):
        np.testing.assert_allclose(shared_among_documents(form, counts, shares, topics), x @ topics.T, rtol=1e-12)
        np.testing.assert_allclose(shared_among_topics(form, counts, shares), shares.T @ x, rtol=1e-12)
