"""The three bootstraps: against information matrices, within Monte Carlo error; bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.evaluate.bootstrap import METHODS


@pytest.fixture(scope="module", autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


MODEL = jaxem.Mixture(2, jaxem.Poisson())
COUNTS = np.arange(25.0)


@pytest.fixture(scope="module")
def weight():
    """600 draws from two Poissons of rates 2 and 9, as frequencies of the counts."""
    rng = np.random.default_rng(0)
    x = rng.poisson(np.where(rng.random(600) < 0.4, 2.0, 9.0))
    return np.bincount(x, minlength=25).astype(float)


@pytest.fixture(scope="module")
def result(weight):
    return jaxem.fit(MODEL, COUNTS, weight=weight, key=jax.random.key(0), stop=jaxem.Stop(None, None, 1e-12))


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize("method", METHODS)
def test_agrees_with_the_curvature(method, weight, result):
    n_samples = 400
    found = jaxem.bootstrap(
        MODEL, result, COUNTS, weight=weight, key=jax.random.key(1), n_samples=n_samples, method=method, block_size=640
    )
    assert found.sound.all() and found.params["weights"].shape == (n_samples, 2)
    information = jaxem.information(MODEL, result, COUNTS, weight=weight)
    wanted = flat(jaxem.standard_errors(information))
    # The relative error of a standard deviation over B samples is 1 / sqrt(2 B); of its difference four are
    # allowed, and terms of order 1 / sqrt(n) = 4% in which a bootstrap and the curvature differ.
    np.testing.assert_allclose(flat(jaxem.standard_errors(found)), wanted, rtol=4 / np.sqrt(2 * n_samples) + 0.04)
    centre = flat(jax.tree.map(lambda x: x.mean(0), found.params))
    np.testing.assert_allclose((centre - flat(result.params)) / wanted, 0, atol=4 / np.sqrt(n_samples) + 0.1)
    # An end of a 90% percentile interval lies within 4 x 2.1 / sqrt(B) standard errors of its place.
    for ends, others in zip(jaxem.intervals(found, 0.9), jaxem.intervals(information, 0.9), strict=True):
        np.testing.assert_allclose((flat(ends) - flat(others)) / wanted, 0, atol=0.6)


def test_a_sample_is_a_fit(weight, result):
    """Every refit is the fit to its own weights; each depends on (key, b) alone."""
    n = 5
    stop = jaxem.Stop(None, None, 1e-11)
    x = np.repeat(COUNTS, weight.astype(int))[:200]
    found = jaxem.bootstrap(MODEL, result, x, key=jax.random.key(2), n_samples=n, stop=stop)
    drawn = jax.random.randint(jax.random.fold_in(jax.random.key(2), 3), (200,), 0, 200)
    alone = jaxem.fit(MODEL, x, weight=np.bincount(drawn, minlength=200), init=result, stop=stop)
    np.testing.assert_allclose(found.params["components"]["rate"][3], alone.params["components"]["rate"], rtol=1e-8)
    np.testing.assert_allclose(found.loglik[3], alone.loglik, rtol=1e-12)
    inside = jax.jit(lambda key, x: jaxem.bootstrap(MODEL, result.params, x, key=key, n_samples=n, stop=stop))
    np.testing.assert_allclose(inside(jax.random.key(2), x).params["weights"], found.params["weights"], rtol=1e-8)
    assert str(found) == "nonparametric bootstrap of 5 refits: 5 CONVERGED"


def test_coordinates_of_the_data(faithful):
    """Gaussian families are refitted in whitened coordinates and reported in the data's own."""
    model = jaxem.GaussianMixture(1, "diag")
    params = {"weights": np.ones(1), "components": {"mean": faithful[:1], "covariance": faithful.var(0)[None]}}
    found = jaxem.bootstrap(model, params, faithful, key=jax.random.key(1), n_samples=3)
    for i in range(3):
        rows = faithful[jax.random.randint(jax.random.fold_in(jax.random.key(1), i), (272,), 0, 272)]
        np.testing.assert_allclose(found.params["components"]["mean"][i, 0], rows.mean(0), rtol=1e-10)
        np.testing.assert_allclose(found.params["components"]["covariance"][i, 0], rows.var(0), rtol=1e-9)
        density = -0.5 * np.log(2 * np.pi * rows.var(0)).sum() - 1  # mean log-density at the maximum: ... - D / 2
        np.testing.assert_allclose(found.loglik[i], 272 * density, rtol=1e-10)


@pytest.mark.published
def test_a_penalty_sees_the_users_units(faithful):
    """A refit is a fit with the same penalty."""
    model = jaxem.GaussianMixture(1, "diag")
    penalty = jaxem.L2(10.0, "components.mean")
    params = jaxem.fit(model, faithful, key=jax.random.key(0), penalty=penalty).params
    found = jaxem.bootstrap(model, params, faithful, key=jax.random.key(1), n_samples=2, penalty=penalty)
    rows = faithful[jax.random.randint(jax.random.fold_in(jax.random.key(1), 0), (272,), 0, 272)]
    again = jaxem.fit(model, rows, init=params, penalty=penalty, stop=jaxem.Stop(1e-13))
    np.testing.assert_allclose(found.params["components"]["mean"][0], again.params["components"]["mean"], rtol=1e-6)


def test_draws(weight):
    from jaxem.evaluate.bootstrap import _exponential, _multinomial

    keys = jax.random.split(jax.random.key(0), 2_000)
    counts = jax.vmap(lambda k: _multinomial(k, jnp.asarray(weight), jnp.asarray(COUNTS), 600))(keys)
    gammas = jax.vmap(lambda k: _exponential(k, jnp.asarray(weight), jnp.asarray(COUNTS)))(keys)
    share = weight / 600
    for draws, variance in ((counts, 600 * share * (1 - share)), (gammas, 600**2 * share * (1 - share) / 601)):
        np.testing.assert_allclose(draws.sum(1), 600, rtol=1e-12)
        assert (draws[:, weight == 0] == 0).all()
        z = (draws.mean(0) - weight) / np.sqrt(np.where(variance > 0, variance, 1) / 2_000)
        assert np.abs(z).max() < 4.5  # of 25
        # Relative variance of a sample variance: (2 + excess) / 2000, excess at most 6 (an exponential) and 1 (a count).
        np.testing.assert_allclose(np.var(draws, 0), variance, rtol=4.5 * np.sqrt(8 / 2_000))


def test_bad_input(result, weight):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="method must be one of nonparametric"):
        jaxem.bootstrap(MODEL, result, COUNTS, key=key, method="jackknife")
    with pytest.raises(ValueError, match="key must be a JAX random key"):
        jaxem.bootstrap(MODEL, result, COUNTS, key=None)
    with pytest.raises(ValueError, match="n_samples must be an integer of at least 2"):
        jaxem.bootstrap(MODEL, result, COUNTS, key=key, n_samples=1)
    with pytest.raises(ValueError, match="weight must hold whole numbers"):
        jaxem.bootstrap(MODEL, result, COUNTS, key=key, weight=weight / 2, method="parametric")
    with pytest.raises(ValueError, match="labels must be None"):
        jaxem.bootstrap(MODEL, result, COUNTS, key=key, labels=np.full(25, -1), method="parametric")
    with pytest.raises(TypeError, match="Proportions has none"):
        jaxem.bootstrap(jaxem.Proportions(), {"shares": np.ones(2) / 2}, np.zeros((4, 2)), key=key, method="parametric")
