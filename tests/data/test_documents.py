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


GENSIM = [[(0, 3), (7, 1)], [], [(2, 5), (2, 1)]]


@pytest.mark.parametrize("pairs", [GENSIM, [[(w, float(c)) for w, c in d] for d in GENSIM], [np.array(d) for d in GENSIM]])
def test_pairs_of_word_and_count(pairs):
    """As gensim has them: the first number of a pair is the word, the second how often."""
    for docs in (jaxem.documents(pairs), jaxem.documents(iter(pairs)), jaxem.documents(pairs, n_words=9)):
        assert docs.n_words in (8, 9)
        np.testing.assert_array_equal(docs.words[[0, 2]], [[0, 7], [2, 0]])
        np.testing.assert_array_equal(docs.counts, [[3, 1], [0, 0], [6, 0]])
    if isinstance(pairs[0], list):
        np.testing.assert_array_equal(jaxem.LDA(2).validate(pairs).counts, docs.counts)


TEXT = "must be integers of words; got text: count its words first, e.g. by .*CountVectorizer"
NO_DOCUMENTS = {
    "raw strings": (["the cat", "the dog"], TypeError, TEXT),
    "lists of words": ([["the", "cat"], ["dog"]], TypeError, TEXT),
    "pairs of text": ([[("the", 2)]], TypeError, TEXT),
    "triples": ([[(0, 1, 2)]], TypeError, "document 0 must be integers of words, or pairs"),
    "pairs beside words": ([[0, (1, 2)]], TypeError, "document 0 must be integers of words, or pairs"),
    "fractions": ([[0], [0.5]], TypeError, "document 1 must be integers of words"),
    "fractional words": ([[(0.5, 1.0)]], TypeError, "document 0: words must be integers; got 0.5"),
    "fractional counts": ([[(0, 1.5)]], ValueError, "data.counts must be counts"),
    "negative counts": ([[(0, -1)]], ValueError, "data.counts must be counts"),
}


@pytest.mark.parametrize("name", NO_DOCUMENTS)
def test_no_documents(name):
    data, error, message = NO_DOCUMENTS[name]
    with pytest.raises(error, match=message):
        jaxem.documents(data)
    if name in ("raw strings", "lists of words", "fractional counts"):
        for model in (jaxem.LDA(2), jaxem.PLSA(2)):
            with pytest.raises(error, match=message):
                jaxem.fit(model, data, key=jax.random.key(0))
