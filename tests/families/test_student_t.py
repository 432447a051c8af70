"""Multivariate t components: the maximum in each shape, degrees of freedom, narrow clusters."""

import numpy as np
import pytest
from components import KEY, cast, fit_one, heavy, start
from scipy import optimize, stats

import jaxem

TIGHT = jaxem.Stop(loglik_rtol=1e-15)
TO_THE_END = {"stop": jaxem.Stop(loglik_rtol=None, param_rtol=1e-8), "max_steps": 300}


@pytest.mark.published
@pytest.mark.parametrize("kind", ["full", "diag", "spherical"])
def test_one_t_is_the_maximum(x64, kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2)) @ [[1.0, 0.2], [0.0, 0.5]] / np.sqrt(rng.gamma(2, 0.5, (400, 1))) + [10.0, -3.0]

    def unpack(theta):
        mean, df = theta[:2], np.exp(theta[2])
        if kind == "full":
            lower = np.array([[np.exp(theta[3]), 0], [theta[5], np.exp(theta[4])]])
            return mean, lower @ lower.T, df
        return mean, np.diag(np.exp(2 * theta[3:5]) if kind == "diag" else np.exp(2 * theta[[3, 3]])), df

    def negative(theta):
        mean, scale, df = unpack(theta)
        return -stats.multivariate_t(mean, scale, df).logpdf(x).sum()

    best = optimize.minimize(negative, [*x.mean(0), 1.5, 0.0, 0.0, 0.0], method="BFGS", options={"gtol": 1e-5})
    result = fit_one(jaxem.StudentT(kind), x, stop=TIGHT, max_steps=5_000)
    mean, scale, df = unpack(best.x)
    components = result.params["components"]
    assert float(components["df"][0]) == pytest.approx(df, rel=1e-3)
    np.testing.assert_allclose(components["mean"][0], mean, atol=1e-3)
    wanted = {"full": scale, "diag": scale.diagonal(), "spherical": scale[0, 0]}[kind]
    np.testing.assert_allclose(components["scale"][0], wanted, rtol=1e-3, atol=1e-4)
    assert float(result.loglik) == pytest.approx(-best.fun, abs=1e-6)
    assert float(result.loglik) == pytest.approx(float(jaxem.Mixture(1, jaxem.StudentT(kind)).log_prob(result.params, x).sum()))


def test_given_degrees_of_freedom_stay(dtype):
    x = heavy().astype(dtype)
    result = jaxem.fit(jaxem.Mixture(2, jaxem.StudentT(df=3.0)), x, key=KEY, max_steps=20)
    df = np.asarray(result.params["components"]["df"])
    assert (df == 3).all() and df.dtype == dtype
    model = jaxem.Mixture(2, jaxem.StudentT())
    assert model.n_free_params(x) == jaxem.Mixture(2, jaxem.StudentT(df=3.0)).n_free_params(x) + 2


@pytest.mark.published
def test_many_degrees_of_freedom_are_gaussian(x64):
    x = np.random.default_rng(0).normal(size=(300, 2))
    t = fit_one(jaxem.StudentT(df=1e8), x, stop=TIGHT)
    gaussian = fit_one(jaxem.Gaussian(), x)
    np.testing.assert_allclose(t.params["components"]["scale"], gaussian.params["components"]["covariance"], rtol=1e-6)
    assert float(t.loglik) == pytest.approx(float(gaussian.loglik), rel=1e-7)


def test_t_of_a_narrow_cluster_far_away(dtype):
    """A cluster of width 1e-4 beside one of width 1, all of it at an offset of 1000."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_t(5, (300, 2)), rng.standard_t(5, (300, 2)) * 1e-3 + 3])
    wide = jaxem.Mixture(2, jaxem.StudentT())
    init = start(2, mean=[[0, 0], [3, 3]], scale=[np.eye(2), 1e-4 * np.eye(2)], df=[5, 5])
    exact = jaxem.fit(wide, x.astype(dtype), init=cast(init, dtype), max_steps=300)
    scale = np.asarray(exact.params["components"]["scale"])
    np.testing.assert_allclose(scale[1].diagonal(), 1e-6, rtol=0.4)
    history = np.asarray(exact.history, float)
    assert (np.diff(history) > -1e-4 * np.abs(history[-1])).all()


def test_normal_data_lead_to_the_normal_density(x64):
    """Quantiles have lighter tails than any t density: the limit itself is the maximum."""
    x = stats.norm.ppf((np.arange(100) + 0.5) / 100)[:, None]
    result = jaxem.fit(jaxem.MultivariateT(missing=None), x, **TO_THE_END)
    assert result.converged and float(result.params["df"]) == pytest.approx(1e8)
    assert float(result.loglik) > stats.norm(0, x.std()).logpdf(x).sum() - 1e-6 * len(x)


def test_a_finite_maximum_is_not_passed_over(x64):
    """The normal density beats the start, and the maximum beats it by little; EM alone takes thousands of steps."""
    x = np.random.default_rng(4).standard_t(20, 400)
    inverse, loc, scale = optimize.minimize(
        lambda p: -stats.t(1 / p[0], p[1], p[2]).logpdf(x).sum(), [0.05, 0, 1], method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-10, "maxiter": 4_000},
    ).x  # fmt: skip
    result = jaxem.fit(jaxem.MultivariateT(missing=None), x[:, None], **TO_THE_END)
    best = stats.t(1 / inverse, loc, scale).logpdf(x).sum()
    assert result.converged and float(result.loglik) == pytest.approx(best, abs=1e-6)
