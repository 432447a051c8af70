"""Local false-discovery rates on a simulated expression study with known truth, and returns for a portfolio."""

import sys

import jax
import numpy as np
import pytest
from conftest import DATA

import jaxem


def study(n_genes=8000, n_each=10, seed=0):
    """z-scores of two-sample tests of genes whose samples share a nuisance, so that the null is wider than N(0, 1)."""
    rng = np.random.default_rng(seed)
    changed = rng.random(n_genes) < 0.1
    effect = np.where(changed, rng.choice([-1, 1], n_genes) * rng.normal(1.6, 0.3, n_genes), 0)
    shared = 0.2 * rng.normal(size=(2 * n_each,))  # hits every gene with a loading of its own
    x = rng.normal(size=(n_genes, 2 * n_each)) + rng.normal(size=(n_genes, 1)) * shared
    x[:, n_each:] += effect[:, None]
    a, b = x[:, :n_each], x[:, n_each:]
    spread = np.sqrt((a.var(1, ddof=1) + b.var(1, ddof=1)) / 2 * 2 / n_each)
    from scipy import stats

    t = (b.mean(1) - a.mean(1)) / spread
    return stats.norm.ppf(stats.t(2 * n_each - 2).cdf(t)), changed


@pytest.mark.published
def test_local_fdr_is_calibrated(x64):
    z, changed = study()
    found = jaxem.two_groups(z)
    local = np.asarray(found.local_fdr(z))
    for low, high in [(0, 0.1), (0.1, 0.4), (0.4, 0.8), (0.8, 1.01)]:
        inside = (local >= low) & (local < high)
        n, mean = inside.sum(), local[inside].mean()
        assert n > 50
        # Three binomial standard errors, and what the estimate of the three densities itself may be off by.
        assert abs(mean - (~changed[inside]).mean()) < 3 * np.sqrt(mean * (1 - mean) / n) + 0.06
    np.testing.assert_allclose(found.null["share"], 0.9, atol=0.02)
    discoveries = np.asarray(found.discoveries(z, 0.1))
    assert (~changed[discoveries]).mean() < 0.14 and changed[discoveries].sum() > 0.5 * changed.sum()


def test_the_null_is_empirical(x64):
    rng = np.random.default_rng(0)
    z = np.r_[rng.normal(0.3, 1.4, 9500), rng.normal(6, 1, 500)]
    null = jaxem.two_groups(z).null
    np.testing.assert_allclose([null["mean"], null["std"]], [0.3, 1.4], atol=0.06)


@pytest.mark.parametrize(
    "z, message", [(np.zeros((200, 2)), "at least 100"), (np.zeros(5), "100"), (np.full(200, np.nan), "finite")]
)
def test_bad_scores(z, message):
    with pytest.raises(ValueError, match=message):
        jaxem.two_groups(z)


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


@pytest.mark.published
def test_portfolio_out_of_sample(x64):
    """Minimum variance of twenty stocks, half a year at a time: factors risk less than the sample covariance.

    A t distribution, which does not trust the days that say most of how stocks fall together, risks more.
    """
    pytest.importorskip("skfolio")
    from skfolio.datasets import load_sp500_dataset
    from skfolio.optimization import MeanRisk
    from skfolio.preprocessing import prices_to_returns
    from skfolio.prior import EmpiricalPrior

    from jaxem.skfolio import FittedPrior

    returns = prices_to_returns(load_sp500_dataset())
    priors = {
        "t": FittedPrior(jaxem.Mixture(1, jaxem.StudentT()), n_restarts=1),
        "factors": FittedPrior(jaxem.FactorAnalysis(2), n_restarts=1),
        "sample": EmpiricalPrior(),
    }
    kept = {name: [] for name in priors}
    for start in range(0, 126 * 40, 126 * 4):
        past, next_half = returns.iloc[start : start + 126], returns.iloc[start + 126 : start + 252]
        for name, prior in priors.items():
            model = MeanRisk(prior_estimator=prior).fit(past)
            assert np.linalg.eigvalsh(model.prior_estimator_.return_distribution_.covariance)[0] > 0
            kept[name].append(np.asarray(next_half) @ model.weights_)
    risk = {name: np.concatenate(parts).std() for name, parts in kept.items()}
    assert risk["factors"] < risk["sample"] < risk["t"]


def test_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "skfolio", None)
    monkeypatch.setitem(sys.modules, "skfolio.prior", None)
    monkeypatch.delitem(sys.modules, "jaxem.skfolio", raising=False)
    with pytest.raises(ImportError, match=r"pip install \"jaxem\[finance\]\""):
        import jaxem.skfolio  # noqa: F401
