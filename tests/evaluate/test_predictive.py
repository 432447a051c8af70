"""Moments of what comes next: of a mixture against draws, of a chain written out."""

import jax
import numpy as np
import pytest
from support import DATA

import jaxem


@pytest.mark.published
def test_weekly_regimes(x64):
    """Equal-weight weekly returns, two regimes in mean and variance (statsmodels, stationary start)."""
    x = 100 * np.loadtxt(DATA / "ew_weekly.csv", delimiter=",", skiprows=1, usecols=1)[:, None]
    model = jaxem.HMM(2, jaxem.Gaussian(), initial="stationary")
    result = jaxem.fit(model, x, key=jax.random.key(0), n_restarts=2, stop=jaxem.Stop(loglik_rtol=1e-11))
    np.testing.assert_allclose(result.loglik, -3795.2336, atol=1e-4)
    mean, covariance = jaxem.predictive_moments(model, result.params, x)
    belief = np.asarray(model.filter(result.params, x))[-1] @ np.asarray(result.params["transition"])
    means, variances = (np.asarray(result.params["emission"][name]).reshape(2) for name in ("mean", "covariance"))
    np.testing.assert_allclose(mean, [belief @ means], rtol=1e-10)
    np.testing.assert_allclose(covariance, [[belief @ (variances + means**2) - (belief @ means) ** 2]], rtol=1e-10)


@pytest.mark.published
@pytest.mark.parametrize("covariance", ["full", "spherical"])
def test_predictive_moments_of_a_mixture(x64, covariance):
    """Against a large sample drawn from the model."""
    model = jaxem.Mixture(2, jaxem.StudentT(covariance, df=8.0))
    x = np.random.default_rng(0).normal(size=(200, 3)) * [1, 2, 3] + np.where(np.arange(200)[:, None] < 100, 0, 4)
    params = jaxem.fit(model, x, key=jax.random.key(0), max_steps=10).params
    mean, spread = jaxem.predictive_moments(model, params, x)
    drawn = np.asarray(model.sample(jax.random.key(1), params, 200_000))
    np.testing.assert_allclose(mean, drawn.mean(0), atol=0.05)
    np.testing.assert_allclose(spread, np.cov(drawn.T), atol=0.2)


def test_infinite_variances_are_refused(x64):
    model = jaxem.Mixture(1, jaxem.StudentT(df=1.5))
    params = jaxem.fit(model, np.random.default_rng(0).normal(size=(50, 2)), key=jax.random.key(0), max_steps=3).params
    with pytest.raises(ValueError, match="df > 2"):
        jaxem.predictive_moments(model, params, None)
    with pytest.raises(TypeError, match="must be a Mixture, an HMM or"):
        jaxem.predictive_moments(jaxem.LDA(2), params, None)
