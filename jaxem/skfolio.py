"""Fitted return distributions as priors of skfolio's optimizers. Needs the extra `finance`."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxem.evaluate.predictive import predictive_moments
from jaxem.fitting.fit import fit
from jaxem.model import Model

try:
    from skfolio.prior import BasePrior, ReturnDistribution
except ImportError as error:
    raise ImportError('jaxem.skfolio needs skfolio: pip install "jaxem[finance]"') from error


class FittedPrior(BasePrior):
    """Expected returns and covariance of the next period under a model fitted by EM.

    A mixture of t distributions gives outliers their due; an HMM tells the regime that the series is in.

    Attributes:
        return_distribution_: what skfolio's optimizers read.
        result_: the fit.
    """

    return_distribution_: ReturnDistribution

    def __init__(self, model: Model, seed: int = 0, n_restarts: int = 8) -> None:
        self.model = model
        self.seed = seed
        self.n_restarts = n_restarts

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> FittedPrior:  # noqa: N803
        """Fit to returns.

        Args:
            X: (T, D) returns, one column an asset.
            y: ignored.
            **fit_params: for `jaxem.fit`.
        """
        del y
        returns = np.asarray(X, float)
        self.result_ = fit(self.model, returns, key=jax.random.key(self.seed), n_restarts=self.n_restarts, **fit_params)
        mean, covariance = predictive_moments(self.model, self.result_.params, returns)
        covariance = np.asarray(covariance, float)
        covariance = (covariance + covariance.T) / 2
        self.return_distribution_ = ReturnDistribution(np.asarray(mean, float), covariance, returns)
        return self
