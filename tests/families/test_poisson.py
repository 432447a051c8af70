"""Poisson components against closed forms, SciPy and EM written out in NumPy."""

import jax
import numpy as np
import pytest
from components import CASES, counts, plain_em, start
from scipy import special, stats

import jaxem

NEVER = jaxem.Stop(loglik_rtol=None)


def fit(family, k, x, **options):
    return jaxem.fit(jaxem.Mixture(k, family), x, **options)


@pytest.mark.parametrize("columns", [None, 3])
def test_one_poisson_is_the_mean(dtype, columns):
    x = counts().astype(dtype)
    x = x[:, 0] if columns is None else x
    result = fit(jaxem.Poisson(), 1, x, key=jax.random.key(0))
    assert result.params["components"]["rate"].shape == (1, *x.shape[1:])
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(result.params["components"]["rate"][0], x.mean(0, np.float64), rtol=tolerance)
    wanted = stats.poisson(x.mean(0, np.float64)).logpmf(x).sum()
    assert float(result.loglik) == pytest.approx(wanted, rel=tolerance)


def test_weights_are_counts(x64):
    x, options = counts(100), dict(max_steps=15, stop=NEVER)
    weight = np.arange(100) % 4
    init = start(2, rate=[[1, 1, 1], [5, 5, 5]])
    one = fit(jaxem.Poisson(), 2, x, weight=weight, init=init, **options)
    two = fit(jaxem.Poisson(), 2, np.repeat(x, weight, 0), init=init, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), one.params, two.params)


@pytest.mark.parametrize("columns", [None, 3])
def test_gamma_prior_gives_the_mode(dtype, columns):
    x = counts(50).astype(dtype)
    x = x[:, 0] if columns is None else x
    result = fit(jaxem.Poisson(jaxem.GammaPrior(3.5, 2.0)), 1, x, key=jax.random.key(0))
    mode = (3.5 - 1 + x.sum(0)) / (2.0 + len(x))
    np.testing.assert_allclose(result.params["components"]["rate"][0], mode, rtol=1e-6 if dtype == np.float32 else 1e-12)


def test_gamma_prior_of_a_mixture_is_part_of_the_objective(x64):
    family, x, init, density, _ = CASES["poisson"]
    shape, inverse_scale = np.array([2.0, 3.0, 1.5]), 4.0

    def estimate(responsibilities, x):
        total = responsibilities.T @ x + shape - 1
        return {"rate": total / (responsibilities.sum(0)[:, None] + inverse_scale)}

    wanted, loglik = plain_em(x, init, density, estimate, 20)
    family = jaxem.Poisson(jaxem.GammaPrior(shape, inverse_scale))
    result = fit(family, 2, x, init=init, max_steps=20, stop=NEVER)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), result.params, wanted)
    assert float(result.loglik) == pytest.approx(loglik, rel=1e-12)
    rate = wanted["components"]["rate"]
    log_prior = ((shape - 1) * np.log(rate) - inverse_scale * rate).sum()
    assert float(result.objective) == pytest.approx(loglik + log_prior, rel=1e-12)
    assert (np.diff(np.asarray(result.history)) > -1e-9).all()


@pytest.mark.parametrize("mean", [100.0, 1e5, 1e7])
def test_large_counts_keep_their_digits(dtype, mean):
    """y log(rate) of a million is beyond float32's digits: once -8 230 for -8 202 at a mean of 1e5."""
    rng = np.random.default_rng(0)
    rate = mean * (1 + np.array([-4, 0, 4]) / np.sqrt(mean))  # four standard deviations apart
    z = rng.integers(0, 3, 1000)
    x = rng.poisson(rate[z]).astype(dtype)
    model = jaxem.Mixture(3, jaxem.Poisson())
    params = {"weights": np.full(3, 1 / 3, dtype), "components": {"rate": rate.astype(dtype)}}
    exact = stats.poisson(params["components"]["rate"].astype(float)).logpmf(x.astype(float)[:, None]) - np.log(3)
    wanted = special.logsumexp(exact, axis=1)
    # SciPy's own rounding is that of y log(rate), of which the density is what is left; here of y log(rate / mean rate).
    rounding = 10 * np.finfo(np.float64).eps * mean * np.log(mean) + np.finfo(dtype).eps * 4 * np.sqrt(mean)
    np.testing.assert_allclose(model.log_prob(params, x), wanted, rtol=100 * np.finfo(dtype).eps, atol=rounding)
    assert (np.asarray(model.predict(params, x)) == exact.argmax(1)).mean() > 0.998


def test_a_rate_of_zero_is_a_start(dtype):
    """A component that never counts has the least positive rate, so that a result is an `init`."""
    x = np.r_[np.zeros(50), np.full(50, 30.0)].astype(dtype)
    result = fit(jaxem.Poisson(), 2, x, key=jax.random.key(0))
    assert 0 < result.params["components"]["rate"].min() < 1e-30
    again = fit(jaxem.Poisson(), 2, x, init=result)
    assert float(again.loglik) == pytest.approx(float(result.loglik), rel=1e-6)
