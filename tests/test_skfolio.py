"""Fitted models as priors of a portfolio."""

import sys

import numpy as np
import pytest

import jaxem


@pytest.mark.published
def test_portfolio_out_of_sample(x64):
    """Minimum variance of twenty stocks, half a year at a time: factors risk less than the sample covariance.

    A t distribution risks more: in one of the half years it takes the jumps of a cheap stock for outliers, and holds too much of it.
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
