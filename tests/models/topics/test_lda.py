"""LDA against the equations of Blei, Ng and Jordan (2003) in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def documents(n=30, v=25, k=3):
    rng = np.random.default_rng(1)
    topics = rng.dirichlet(np.full(v, 0.2), k)
    theta = rng.dirichlet(np.full(k, 0.3), n)
    return np.stack([rng.multinomial(80, t @ topics) for t in theta]).astype(float)


def blei_ng_jordan(x, topics, alpha, n_steps, inner):
    """Bounds and parameters of `n_steps` EM steps; phi (V, K) a document, as in the paper's figure 6."""
    from scipy.special import digamma, gammaln

    n, v = x.shape
    k = len(alpha)
    gamma = alpha + np.repeat(x.sum(1, keepdims=True), k, 1) / k

    def responsibilities(g):
        phi = topics.T * np.exp(digamma(g) - digamma(g.sum()))
        total = phi.sum(1, keepdims=True)  # zero for a word in no document
        return phi / np.where(total > 0, total, 1)

    def e_step(updates):
        bound, counts = 0.0, np.zeros((k, v))
        for d in range(n):
            for _ in range(updates):
                gamma[d] = alpha + x[d] @ responsibilities(gamma[d])
            g, phi = gamma[d], responsibilities(gamma[d])
            e = digamma(g) - digamma(g.sum())
            seen = x[d][:, None] * phi
            bound += gammaln(alpha.sum()) - gammaln(alpha).sum() + (alpha - 1) @ e  # p(theta)
            bound += (seen * e).sum()  # p(z | theta)
            bound += (seen * np.log(np.where(phi > 0, topics.T, 1))).sum()  # p(w | z)
            bound -= gammaln(g.sum()) - gammaln(g).sum() + (g - 1) @ e  # q(theta)
            bound -= (seen * np.log(np.where(phi > 0, phi, 1))).sum()  # q(z)
            counts += seen.T
        return bound, counts

    # A restart sets up its gamma cold, and its first E-step goes on from there.
    bound, counts = e_step(2 * inner)
    bounds = [bound]
    for _ in range(n_steps):
        topics = counts / counts.sum(1, keepdims=True)
        bound, counts = e_step(inner)
        bounds.append(bound)
    return bounds, topics, gamma


def test_equals_blei_ng_jordan():
    x, rng = documents(), np.random.default_rng(2)
    start = {"topics": rng.dirichlet(np.ones(25), 3), "alpha": np.array([0.3, 0.5, 0.9])}
    model = jaxem.LDA(3, inner_steps=4)
    result = jaxem.fit(model, x, init=start, max_steps=10, block_size=7, stop=jaxem.Stop(None))
    bounds, topics, gamma = blei_ng_jordan(x, start["topics"], start["alpha"], 10, 4)
    np.testing.assert_allclose(result.history, bounds, rtol=1e-10)
    np.testing.assert_allclose(result.params["topics"], topics, atol=1e-8)
    np.testing.assert_allclose(result.local, gamma, atol=1e-8)
    np.testing.assert_array_equal(result.params["alpha"], start["alpha"])


@pytest.mark.parametrize("learn_alpha", [False, True])
def test_bound_never_falls(learn_alpha):
    x = documents()
    model = jaxem.LDA(3, alpha=0.7, learn_alpha=learn_alpha)
    result = jaxem.fit(model, x, key=jax.random.key(0), n_restarts=3, max_steps=100, stop=jaxem.Stop(1e-9))
    assert (np.diff(result.history) > -1e-8).all()
    assert (np.asarray(result.restarts.status) != jaxem.Status.DECREASED).all()
    changed = np.abs(np.asarray(result.params["alpha"]) - 0.7).max() > 1e-3
    assert changed == learn_alpha
    assert model.n_free_params(x) == 3 * 24 + 3 * learn_alpha
    np.testing.assert_allclose(model.posterior(result.params, x).sum(1), 1)
    np.testing.assert_allclose(model.log_prob(result.params, x).sum(), result.loglik, rtol=1e-3)


def test_learned_alpha_is_stationary():
    x = documents()
    model = jaxem.LDA(3, learn_alpha=True, inner_steps=20)
    result = jaxem.fit(model, x, key=jax.random.key(1), max_steps=3000, stop=jaxem.Stop(None, None, 1e-9))

    def bound(alpha):
        natural = model.pack(model.natural({**result.params, "alpha": alpha}))
        return model.log_marginal(natural, x, jaxem.Rows(local=result.local)).sum()

    assert np.abs(jax.grad(bound)(result.params["alpha"])).max() < 1e-3


def test_weight_is_repetition_and_padding_is_absent():
    x = documents(12)
    model, start = (
        jaxem.LDA(2, alpha=0.5),
        {"topics": np.random.default_rng(3).dirichlet(np.ones(25), 2), "alpha": np.full(2, 0.5)},
    )
    twice = jaxem.fit(model, np.concatenate([x, x[:4]]), init=start, max_steps=8, stop=jaxem.Stop(None))
    weighted = jaxem.fit(model, x, init=start, weight=np.r_[np.full(4, 2.0), np.ones(8)], max_steps=8, stop=jaxem.Stop(None))
    np.testing.assert_allclose(weighted.params["topics"], twice.params["topics"], atol=1e-10)
    blocks = jaxem.fit(model, x, init=start, block_size=5, max_steps=8, stop=jaxem.Stop(None))
    whole = jaxem.fit(model, x, init=start, max_steps=8, stop=jaxem.Stop(None))
    np.testing.assert_allclose(blocks.local, whole.local, rtol=1e-10)
    assert blocks.local.shape == (12, 2)


def test_sample():
    params = {"topics": jnp.full((2, 5), 0.2), "alpha": jnp.ones(2)}
    x = jaxem.LDA(2).sample(jax.random.key(0), params, 7, 30)
    assert x.shape == (7, 5) and (x.sum(1) == 30).all()
