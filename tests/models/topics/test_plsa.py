"""pLSA, sparse documents and held-out words: against plain NumPy, scikit-learn's NMF and its LDA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import NMF, LatentDirichletAllocation

import jaxem

STILL = jaxem.Stop(None)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def corpus(n=24, v=20, k=3, words=60):
    rng = np.random.default_rng(0)
    topics, shares = rng.dirichlet(np.full(v, 0.2), k), rng.dirichlet(np.full(k, 0.3), n)
    return np.stack([rng.multinomial(words, t @ topics) for t in shares]).astype(float)


def plsa(x, phi, theta, n_steps):
    """EM in NumPy: topics, then the shares that belong to them."""

    def ratio():
        mix = theta @ phi
        return x / np.where(mix > 0, mix, 1)  # zero for a word in no document

    def shares():
        new = theta * (ratio() @ phi.T)
        return new / new.sum(1, keepdims=True)

    theta = shares()
    theta = shares()  # a restart sets up its shares, and its first E-step goes on from there
    for _ in range(n_steps):
        phi = phi * (theta.T @ ratio())
        phi /= phi.sum(1, keepdims=True)
        theta = shares()
    return phi, theta, (x * np.log(np.where(x > 0, theta @ phi, 1))).sum()


@pytest.mark.parametrize("make", [lambda: jaxem.PLSA(3, prior=jaxem.Dirichlet(1.1)), lambda: jaxem.LDA(3)], ids=["PLSA", "LDA"])
def test_sparse_is_dense(make):
    x, model = corpus(), make()
    start = {"topics": np.random.default_rng(2).dirichlet(np.ones(20), 3)}
    start |= {"alpha": np.full(3, 0.4)} if isinstance(model, jaxem.LDA) else {}
    dense = jaxem.fit(model, x, init=start, max_steps=6, stop=STILL)
    sparse = jaxem.fit(model, jaxem.documents(x), init=start, max_steps=6, stop=STILL, block_size=7)
    np.testing.assert_allclose(sparse.params["topics"], dense.params["topics"], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(sparse.local, dense.local, rtol=1e-8)
    np.testing.assert_allclose(sparse.history, dense.history, rtol=1e-12)


# --- pLSA ----------------------------------------------------------------------------------------
def test_plsa_step_by_step():
    x = corpus()
    phi = np.random.default_rng(3).dirichlet(np.ones(20), 3)
    phi_, theta_, loglik = plsa(x, phi, np.full((24, 3), 1 / 3), 5)
    result = jaxem.fit(jaxem.PLSA(3), jaxem.documents(x), init={"topics": phi}, max_steps=5, stop=STILL)
    np.testing.assert_allclose(result.params["topics"], phi_, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(result.local, theta_, rtol=1e-9)
    np.testing.assert_allclose(result.loglik, loglik, rtol=1e-12)
    assert (np.diff(result.history) > 0).all()


@pytest.mark.published  # takes longer than a default test may
def test_plsa_is_nmf_by_kullback_leibler():
    x = corpus()
    model = jaxem.PLSA(3)
    result = jaxem.fit(model, x, key=jax.random.key(0), n_restarts=4, stop=jaxem.Stop(1e-13), algorithm=jaxem.Squarem())
    nmf = NMF(3, beta_loss="kullback-leibler", solver="mu", init="custom", tol=0, max_iter=3000)
    start = np.asarray(result.params["topics"]) + 1e-3
    w = nmf.fit_transform(x, W=np.full((24, 3), 20.0), H=start / start.sum(1, keepdims=True))
    mix = w @ nmf.components_
    mix /= mix.sum(1, keepdims=True)
    other = np.where(x > 0, x * np.log(np.where(x > 0, mix, 1)), 0).sum()
    np.testing.assert_allclose(result.loglik, other, atol=1e-3)
    assert (np.asarray(result.restarts.status) == jaxem.Status.CONVERGED).all()
    assert model.n_free_params(x) == 3 * 19 + 24 * 2


@pytest.mark.published  # takes longer than a default test may
def test_plsa_accelerated_weighted_and_folded_in():
    x = corpus()
    x[5] = 0  # no words: equal shares, no NaN
    model, docs, start = jaxem.PLSA(2), jaxem.documents(x), {"topics": np.random.default_rng(5).dirichlet(np.ones(20), 2)}
    em = jaxem.fit(model, docs, init=start, stop=jaxem.Stop(1e-11))
    fast = jaxem.fit(model, docs, init=start, stop=jaxem.Stop(1e-11), algorithm=jaxem.Squarem())
    assert 3 * fast.n_steps < em.n_steps and (np.diff(fast.history) >= -1e-9).all()
    np.testing.assert_allclose(fast.loglik, em.loglik, rtol=1e-4)
    np.testing.assert_allclose(em.local[5], [0.5, 0.5])
    np.testing.assert_allclose(model.posterior(em.params, docs, 3000), em.local, atol=1e-3)
    np.testing.assert_allclose(model.log_prob(em.params, docs, 3000).sum(), em.loglik, rtol=1e-6)
    twice = jaxem.fit(model, np.concatenate([x, x[:4]]), init=start, max_steps=5, stop=STILL)
    weighted = jaxem.fit(model, docs, init=start, weight=np.r_[np.full(4, 2.0), np.ones(20)], max_steps=5, stop=STILL)
    np.testing.assert_allclose(weighted.params["topics"], twice.params["topics"], rtol=1e-9)
    restarts = lambda d: jaxem.fit(model, d, key=jax.random.key(0), n_restarts=3, max_steps=5, stop=STILL).restarts.loglik  # noqa: E731
    np.testing.assert_allclose(jax.jit(restarts)(jax.tree.map(jnp.asarray, docs)), restarts(docs), rtol=1e-10)
    drawn = model.sample(jax.random.key(0), em.params, 5, 30)
    assert drawn.shape == (5, 20) and (drawn.sum(1) == 30).all()


def test_structural_zeros_stay():
    x = corpus()
    topics = np.random.default_rng(6).dirichlet(np.ones(20), 3)
    topics[0, :5] = 0
    result = jaxem.fit(jaxem.PLSA(3), x, init={"topics": topics / topics.sum(1, keepdims=True)}, max_steps=20)
    assert (result.params["topics"][0, :5] == 0).all() and np.isfinite(result.loglik)


# --- LDA -----------------------------------------------------------------------------------------
def test_lda_shares_are_scikit_learns():
    x = corpus()
    topics, alpha = np.random.default_rng(7).dirichlet(np.ones(20), 3), 0.4
    peer = LatentDirichletAllocation(3, doc_topic_prior=alpha, max_doc_update_iter=5000, mean_change_tol=1e-12)
    peer.fit(x[:2])
    # Its topics are random too; at a concentration of 1e9 they are fixed.
    peer.components_ = topics * 1e9
    peer.exp_dirichlet_component_ = topics
    wanted = peer.transform(x)
    got = jaxem.LDA(3).posterior({"topics": jnp.asarray(topics), "alpha": jnp.full(3, alpha)}, jaxem.documents(x), 5000)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.published  # takes longer than a default test may
def test_learned_alpha_tells_common_topics_from_rare_ones():
    rng = np.random.default_rng(8)
    topics = np.kron(np.eye(3), np.full(8, 1 / 8))
    shares = rng.dirichlet([2.0, 0.5, 0.1], 150)
    x = np.stack([rng.multinomial(80, t @ topics) for t in shares]).astype(float)
    start = {"topics": topics * 0.9 + 0.1 / 24, "alpha": np.full(3, 1.0)}
    result = jaxem.fit(jaxem.LDA(3, learn_alpha=True, inner_steps=20), x, init=start, stop=jaxem.Stop(1e-10), max_steps=300)
    np.testing.assert_allclose(result.params["alpha"], [2.0, 0.5, 0.1], rtol=0.35)
    fixed = jaxem.fit(jaxem.LDA(3, inner_steps=20), x, init=start, stop=jaxem.Stop(1e-10), max_steps=300)
    assert result.loglik > fixed.loglik + 50 and (np.diff(result.history) > -1e-8).all()


# --- held-out words ------------------------------------------------------------------------------
def test_completion_perplexity():
    x = corpus()
    model, params = jaxem.PLSA(3), {"topics": jnp.asarray(np.random.default_rng(9).dirichlet(np.ones(20), 3))}
    for data in (x, jaxem.documents(x)):
        seen, unseen = jaxem.split_words(jax.random.key(0), data, 0.7)
        counts = [np.asarray(getattr(part, "counts", part)) for part in (seen, unseen)]
        np.testing.assert_array_equal(counts[0] + counts[1], getattr(data, "counts", data))
        assert abs(counts[0].sum() / x.sum() - 0.7) < 0.05
        got = jaxem.completion_perplexity(model, params, seen, unseen)
        mix = np.asarray(model.posterior(params, seen) @ params["topics"])
        mix = mix if data is x else np.take_along_axis(mix, data.words, 1)
        np.testing.assert_allclose(got, np.exp(-(counts[1] * np.log(mix)).sum() / counts[1].sum()), rtol=1e-10)
    uniform = {"topics": jnp.full((3, 20), 1 / 20)}
    np.testing.assert_allclose(jaxem.completion_perplexity(model, uniform, seen, unseen), 20, rtol=1e-10)


def test_top_words():
    params = {"topics": np.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])}
    assert jaxem.top_words(params, n=2) == [[1, 2], [0, 2]]
    assert jaxem.top_words(params, ["a", "b", "c"], 1) == [["b"], ["a"]]
    with pytest.raises(ValueError, match="vocabulary must hold V=3 words; got 1"):
        jaxem.top_words(params, ["a"])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: jaxem.documents([]), ValueError, "at least one document"),
        (lambda: jaxem.documents([["wheat", "corn"]]), TypeError, "document 0 must be integers"),
        (lambda: jaxem.documents([[0, 5]], n_words=5), ValueError, r"data.words must be in 0..4; got 5"),
        (lambda: jaxem.documents(np.ones(4)), ValueError, r"shape \(N, V\)"),
        (lambda: jaxem.documents(-np.ones((2, 3))), ValueError, "non-negative integers"),
        (lambda: jaxem.fit(jaxem.PLSA(2), np.full((2, 3), 0.5), key=jax.random.key(0)), ValueError, "non-negative integers"),
        (lambda: jaxem.fit(jaxem.PLSA(0), np.ones((2, 3)), key=jax.random.key(0)), ValueError, "n_topics"),
        (lambda: jaxem.fit(jaxem.LDA(2, alpha=-1.0), np.ones((2, 3)), key=jax.random.key(0)), ValueError, "alpha must be"),
        (lambda: jaxem.split_words(jax.random.key(0), np.ones((2, 3)), 1.0), ValueError, "strictly between"),
        (lambda: jaxem.completion_perplexity(jaxem.PLSA(2), {}, np.ones((2, 3)), np.ones((1, 3))), ValueError, "same documents"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
