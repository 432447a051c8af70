"""Negative binomial components against SciPy: the maximum, and the digits near Poisson and of large counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from components import fit_one, scores
from scipy import optimize, stats

import jaxem
from jaxem.pytree import struct

TIGHT = jaxem.Stop(loglik_rtol=1e-15)


def test_negative_binomial_near_poisson_keeps_its_digits():
    x = np.random.default_rng(0).poisson(8.0, 300).astype(np.float32)
    params = {"mean": jnp.asarray([8.0]), "size": jnp.asarray([1e6])}
    got = scores(jaxem.NegativeBinomial(), params, x)[:, 0]
    np.testing.assert_allclose(got, stats.nbinom(1e6, 1e6 / (1e6 + 8)).logpmf(x), rtol=2e-5)


def test_negative_binomial_of_large_counts_keeps_its_digits(dtype):
    rng = np.random.default_rng(0)
    x = rng.poisson(1e5 * rng.gamma(3, 1 / 3, 300)).astype(dtype)
    params = {"mean": jnp.asarray([1e5], dtype), "size": jnp.asarray([3.0], dtype)}
    got = scores(jaxem.NegativeBinomial(), params, x)[:, 0]
    np.testing.assert_allclose(got, stats.nbinom(3, 3 / (3 + 1e5)).logpmf(x), rtol=1e-6 if dtype == np.float32 else 1e-10)
    result = fit_one(jaxem.NegativeBinomial(), x, max_steps=500)
    assert int(result.status) == jaxem.Status.CONVERGED


@pytest.mark.parametrize("size", [0.3, 3.0])
def test_one_negative_binomial_is_the_maximum(x64, size):
    rng = np.random.default_rng(2)
    x = rng.poisson(5.0 * rng.gamma(size, 1 / size, 500)).astype(float)

    def negative(log_size):
        s = np.exp(log_size)
        return -stats.nbinom(s, s / (s + x.mean())).logpmf(x).sum()

    best = optimize.minimize_scalar(negative, bounds=(-5, 8), method="bounded", options={"xatol": 1e-10})
    result = fit_one(jaxem.NegativeBinomial(), x, stop=TIGHT, max_steps=5_000)
    components = result.params["components"]
    assert float(components["mean"][0]) == pytest.approx(x.mean(), rel=1e-6)
    assert float(components["size"][0]) == pytest.approx(np.exp(best.x), rel=1e-4)
    assert float(result.loglik) == pytest.approx(-best.fun, abs=1e-8)


def test_negative_binomial_ends_no_lower_than_poisson(x64):
    """Counts that vary less than Poisson's: the limit itself is the maximum."""
    x = np.round(np.random.default_rng(0).normal(1e5, 100, 300))
    result = fit_one(jaxem.NegativeBinomial(), x)
    assert result.converged and int(result.n_steps) < 300
    assert float(result.loglik) > stats.poisson(x.mean()).logpmf(x).sum() - 1e-6 * len(x)
    assert float(result.params["components"]["size"][0]) == pytest.approx(1e8 * x.mean(), rel=1e-6)


def test_two_poisson_clusters_of_large_counts_are_told_apart(x64):
    rng = np.random.default_rng(0)
    x = np.r_[rng.poisson(1e5, 100), rng.poisson(1.02e5, 100)]
    found = jaxem.fit(jaxem.Mixture(2, jaxem.NegativeBinomial()), x, key=jax.random.key(0), n_restarts=4)
    limit = jaxem.fit(jaxem.Mixture(2, jaxem.Poisson()), x, key=jax.random.key(0), n_restarts=4)
    assert float(found.loglik) > float(limit.loglik) - 1e-6 * len(x)


def test_scores_at_the_limit_are_poissons(dtype):
    x = np.random.default_rng(0).poisson(1e5, 300).astype(dtype)
    params = {"mean": jnp.asarray([1e5], dtype), "size": jnp.asarray([1e13], dtype)}
    model = jaxem.NegativeBinomial().centered(params)
    got = model.scores(model.natural(params), jnp.asarray(x))[0]
    # What is left of a row is a difference of two numbers of the size of the deviation.
    np.testing.assert_allclose(got, stats.poisson(1e5).logpmf(x), atol=2_000 * np.finfo(dtype).eps)


@struct
class Reckless(jaxem.NegativeBinomial):
    """Its step ahead always leads astray."""

    def scoring_step(self, stats, params, new):
        return {**new, "size": jnp.full_like(new["size"], 1e-3)}


def test_a_scoring_step_that_lowers_the_likelihood_is_taken_back(x64):
    x = np.random.default_rng(2).poisson(5.0, 60)
    stop = jaxem.Stop(loglik_rtol=1e-6)
    plain, astray = (fit_one(family, x, stop=stop) for family in (jaxem.NegativeBinomial(), Reckless()))
    assert astray.converged and (np.diff(np.asarray(astray.history)) >= -1e-10).all()
    assert float(astray.loglik) == pytest.approx(float(plain.loglik), abs=0.05)
