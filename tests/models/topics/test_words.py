"""Topics of the Reuters corpus that the `lda` package ships (395 x 4258), against scikit-learn."""

import jax
import numpy as np
import pytest
from sklearn.decomposition import NMF, LatentDirichletAllocation

import jaxem

lda = pytest.importorskip("lda")
pytestmark = [pytest.mark.published, pytest.mark.usefixtures("optimised")]


@pytest.fixture(scope="module")
def reuters():
    """Documents to fit, others of which half the words are seen."""
    counts = lda.datasets.load_reuters().astype(np.float32)
    assert counts.shape == (395, 4258)
    held = np.arange(395) % 5 == 0
    return counts[~held], jaxem.split_words(jax.random.key(1), counts[held])


def test_plsa_matches_nmf(reuters):
    train, _ = reuters
    nmf = NMF(10, beta_loss="kullback-leibler", solver="mu", init="random", max_iter=100, random_state=0)
    mix = nmf.fit_transform(train) @ nmf.components_
    mix /= mix.sum(1, keepdims=True)
    peer = np.where(train > 0, train * np.log(np.where(train > 0, mix, 1)), 0).sum()
    settings = {"key": jax.random.key(0), "max_steps": 100, "stop": jaxem.Stop(None)}
    docs = jaxem.documents(train)
    plain = jaxem.fit(jaxem.PLSA(10), docs, **settings)
    fast = jaxem.fit(jaxem.PLSA(10), docs, algorithm=jaxem.Squarem(), **settings)
    for result in (plain, fast):
        assert (np.diff(result.history) >= -1).all()  # float32, of 5e5
        assert result.loglik > peer  # other maxima, from random starts too
    assert fast.loglik > plain.loglik


def test_lda_foretells_words(reuters):
    train, (seen, unseen) = reuters
    docs = jaxem.documents(train)
    prior = jaxem.Dirichlet(1.05)  # a word that no document to fit has must not be impossible
    fits = {}
    for name, model in {"fixed": jaxem.LDA(20, 0.1, prior), "learned": jaxem.LDA(20, 0.1, prior, learn_alpha=True)}.items():
        fits[name] = model, jaxem.fit(model, docs, key=jax.random.key(0), max_steps=80, stop=jaxem.Stop(1e-6))
        assert (np.diff(fits[name][1].history) >= -1).all()
    assert fits["learned"][1].loglik > fits["fixed"][1].loglik
    alpha = np.asarray(fits["learned"][1].params["alpha"])
    assert alpha.max() > 1.5 * alpha.min()

    peer = LatentDirichletAllocation(20, max_iter=50, random_state=0).fit(train)
    mix = peer.transform(seen) @ (peer.components_ / peer.components_.sum(1, keepdims=True))
    theirs = np.exp(-(unseen * np.log(mix)).sum() / unseen.sum())
    unigrams = (train.sum(0) + 0.05) / (train.sum() + 0.05 * 4258)
    nothing = np.exp(-(unseen * np.log(unigrams)).sum() / unseen.sum())
    ours = min(jaxem.completion_perplexity(*(model, result.params), seen, unseen) for model, result in fits.values())
    assert ours < theirs < 0.7 * nothing


def test_top_words_name_their_topic(reuters):
    train, _ = reuters
    result = jaxem.fit(jaxem.LDA(20, 0.1), jaxem.documents(train), key=jax.random.key(0), max_steps=40)
    topics = jaxem.top_words(result.params, lda.datasets.load_reuters_vocab(), 10)
    # The two stories of the corpus that everybody finds.
    assert any({"teresa", "mother"} <= set(words) for words in topics)
    assert any({"pope", "vatican"} <= set(words) for words in topics)
