"""Regression on what is known only in part: published figures, and direct maximisation."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from support import DATA

import jaxem

TIGHT = jaxem.Stop(loglik_rtol=1e-15, param_rtol=1e-11)
CLASSICS = json.loads((DATA / "classics.json").read_text())


def test_motorettes(x64):
    """Lifetimes of which many had not ended (Schmee and Hahn 1979)."""
    case = CLASSICS["motorettes"]
    hours, censored = np.log10(np.array(case["hours"], float)), np.array(case["censored"], bool)
    inputs = 1000 / (np.array(case["temperature_C"]) + 273.2)
    data = {"lower": hours, "upper": np.where(censored, np.inf, hours), "inputs": inputs[:, None]}
    result = jaxem.fit(jaxem.CensoredRegression(), data, stop=TIGHT)
    np.testing.assert_allclose(result.params["coefficients"], [4.31124714, case["b0"]], atol=2e-7)
    np.testing.assert_allclose(jnp.sqrt(result.params["variance"]), 0.25918271, atol=2e-8)
    np.testing.assert_allclose(result.loglik, case["loglik"], atol=1e-7)


def test_what_was_censored(x64):
    """Moments of what is known only in part, against truncated normal densities; far tails stay finite."""
    model, params = jaxem.CensoredRegression(), {"coefficients": jnp.array([0.5, 1.0]), "variance": jnp.array(4.0)}
    data = {"lower": [1.5, 2.0, -np.inf, 0.0, 30.0], "upper": [1.5, np.inf, 0.5, 1.0, 31.0], "inputs": np.arange(5.0)[:, None]}
    middle = 1 + 0.5 * np.arange(5)
    known = stats.truncnorm((data["lower"] - middle) / 2, (data["upper"] - middle) / 2, middle, 2)
    found = model.posterior(params, data)
    mean, variance = found.mean, found.variance
    np.testing.assert_allclose(model.predict(params, data), middle)
    np.testing.assert_allclose(mean[1:], known.mean()[1:], rtol=1e-8)
    np.testing.assert_allclose(variance[1:], known.var()[1:], rtol=1e-4)
    assert mean[0] == 1.5 and variance[0] == 0


@pytest.mark.parametrize("binned", [False, True])
def test_truncated_and_binned(x64, binned):
    """A sample cut off on both sides, whole or as a histogram, against direct maximisation."""
    rng = np.random.default_rng(0)
    y = rng.normal(1, 2, 4000)
    y = y[(y > 0) & (y <= 4)]
    edges = np.arange(0, 4.01, 0.5)
    counts = np.histogram(y, edges)[0].astype(float)
    low, high, weight = (edges[:-1], edges[1:], counts) if binned else (y, y, np.ones(len(y)))

    def loss(free):
        normal = stats.norm(free[0], np.exp(free[1]))
        inside = np.log(np.diff(normal.cdf(edges))) if binned else normal.logpdf(y)
        return -weight @ (inside - np.log(normal.cdf(4) - normal.cdf(0)))

    best = optimize.minimize(loss, [1.0, 0.5], tol=1e-9)
    data = {"lower": low, "upper": high, "above": np.zeros(len(low)), "below": np.full(len(low), 4.0)}
    result = jaxem.fit(jaxem.CensoredRegression(), data, weight=weight, algorithm=jaxem.Squarem(), stop=TIGHT, max_steps=2000)
    np.testing.assert_allclose(result.loglik, -best.fun, rtol=1e-9)
    np.testing.assert_allclose([result.params["coefficients"][0], np.sqrt(result.params["variance"])],
                               [best.x[0], np.exp(best.x[1])], atol=1e-3)  # fmt: skip
