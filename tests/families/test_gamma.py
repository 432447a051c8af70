"""Gamma components against the maxima of SciPy."""

import jax
import numpy as np
import pytest
from components import durations, start
from scipy import optimize, special, stats

import jaxem

TIGHT = jaxem.Stop(loglik_rtol=1e-14)


def fit(family, k, x, **options):
    return jaxem.fit(jaxem.Mixture(k, family), x, **options)


@pytest.mark.published
@pytest.mark.parametrize("shape", [0.3, 1.0, 4.0, 60.0])
def test_one_gamma_is_the_maximum_of_scipy(x64, shape):
    x = np.random.default_rng(1).gamma(shape, 3.0, 300)
    result = fit(jaxem.Gamma(), 1, x, key=jax.random.key(0), stop=TIGHT)
    a, _, scale = stats.gamma.fit(x, floc=0)
    assert float(result.params["components"]["shape"][0]) == pytest.approx(a, rel=1e-5)
    assert float(result.params["components"]["rate"][0]) == pytest.approx(1 / scale, rel=1e-5)
    assert float(result.loglik) == pytest.approx(stats.gamma(a, scale=scale).logpdf(x).sum(), rel=1e-9)


@pytest.mark.published
def test_one_gamma_of_columns_in_both_precisions(dtype):
    x = durations().astype(dtype)
    result = fit(jaxem.Gamma(), 1, x, key=jax.random.key(0), stop=TIGHT)
    wanted = [stats.gamma.fit(column.astype(float), floc=0) for column in x.T]
    tolerance = 1e-2 if dtype == np.float32 else 1e-5
    np.testing.assert_allclose(result.params["components"]["shape"][0], [a for a, _, _ in wanted], rtol=tolerance)
    np.testing.assert_allclose(result.params["components"]["rate"][0], [1 / s for _, _, s in wanted], rtol=tolerance)
    best = sum(stats.gamma(a, scale=s).logpdf(column).sum() for column, (a, _, s) in zip(x.T.astype(float), wanted))
    assert float(result.loglik) == pytest.approx(best, rel=1e-5 if dtype == np.float32 else 1e-9)


def test_gamma_mixture_reaches_the_maximum_of_scipy(x64):
    x = durations(400)[:, 0]
    init = start(2, shape=[1.5, 6.0], rate=[1.0, 1.0])

    def split(theta):
        return special.expit(theta[0]), np.exp(theta[1:3]), np.exp(theta[3:])

    def negative(theta):
        w, shape, rate = split(theta)
        density = stats.gamma(shape, scale=1 / rate).logpdf(x[:, None])
        return -special.logsumexp(density, b=[1 - w, w], axis=1).sum()

    theta = np.concatenate([[0.0], *(np.log(init["components"][n]) for n in ("shape", "rate"))])
    best = optimize.minimize(negative, theta, method="BFGS", options={"gtol": 1e-5})
    result = fit(jaxem.Gamma(), 2, x, init=init, stop=TIGHT, max_steps=5_000)
    assert float(result.loglik) == pytest.approx(-best.fun, abs=1e-5)
    assert (np.diff(np.asarray(result.history)) > -1e-9).all()
    _, shape, rate = split(best.x)
    np.testing.assert_allclose(result.params["components"]["shape"], shape, rtol=1e-2)
    np.testing.assert_allclose(result.params["components"]["rate"], rate, rtol=1e-2)


def test_gamma_objective_rises_in_both_precisions(dtype):
    x = durations().astype(dtype)
    result = fit(jaxem.Gamma(), 2, x, key=jax.random.key(0), n_restarts=4, max_steps=200)
    assert int(result.status) in (jaxem.Status.CONVERGED, jaxem.Status.MAX_STEPS)
    slack = 1e-6 if dtype == np.float32 else 1e-12
    history = np.asarray(result.history, float)
    assert (np.diff(history) > -slack * (1 + np.abs(history[-1]))).all()
