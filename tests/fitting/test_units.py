"""Offsets and units: float32 on data moved and scaled against float64 on the data as they are."""

import jax
import numpy as np
import pytest
from scipy import stats

import jaxem
from jaxem.data.sequences import rescaled_data
from jaxem.numerics.affine import Affine, LinearUnits
from jaxem.numerics.trees import cast

RNG = np.random.default_rng(0)
N = 120
Z = np.arange(N) % 2
YEARS = RNG.integers(-10, 11, N).astype(float)
LINE = 0.3 * YEARS + RNG.normal(size=N)
ROWS = RNG.normal(size=(N, 3)) @ np.array([[1, 0.5, 0.2], [0, 1, 0.4], [0, 0, 1]]) + 8 * Z[:, None]
LEVELS = RNG.normal(size=(30, 1)) + RNG.normal(size=(30, 4))
HOLES = np.where(RNG.uniform(size=ROWS.shape) < 0.1, np.nan, ROWS)
LAGS = np.zeros(200)
for t in range(1, 200):
    LAGS[t] = 0.5 * LAGS[t - 1] + RNG.normal() * (0.2 if t // 50 % 2 else 1)


def linear(width, offset, scale):
    one = np.ones(width + 1)
    return LinearUnits(-offset * one, scale * one, one / scale, "diagonal")


def plain(width, offset, scale):
    return Affine(np.full(width, -offset), np.float64(scale), np.float64(1 / scale), "scalar")


def diagonal(width, offset, scale):
    return Affine(np.full(width, -offset), np.full(width, scale), np.full(width, 1 / scale), "diagonal")


def full(width, offset, scale):
    return Affine(np.full(width, -offset), scale * np.eye(width), np.eye(width) / scale, "full")


CENSORED = {"lower": np.minimum(LINE, 1.0), "upper": np.where(LINE > 1, np.inf, LINE), "inputs": YEARS[:, None]}
CASES = {
    "regression": (jaxem.Mixture(1, jaxem.LinearRegression()), {"y": LINE, "inputs": YEARS[:, None]}, linear, 1),
    "random intercept": (
        jaxem.RandomIntercept(), {"y": LEVELS, "inputs": np.broadcast_to(np.arange(4.0), (30, 4))[..., None]}, linear, 1,
    ),
    "censored": (jaxem.CensoredRegression(), CENSORED, linear, 1),
    "gaussian": (jaxem.GaussianMixture(2, "spherical"), ROWS, plain, 3),
    "autoregression": (jaxem.HMM(1, jaxem.AutoRegression(order=2)), LAGS, linear, 2),
    "switching mean": (jaxem.MarkovAutoregression(order=1, switching_variance=True), LAGS + 4 * (np.arange(200) // 50 % 2), plain, 1),
    "full": (jaxem.GaussianMixture(2), ROWS, full, 3),
    "holes": (jaxem.MultivariateNormal("diag"), HOLES, diagonal, 3),
    "heavy tails": (jaxem.MultivariateT(5.0, "full", missing=None), ROWS[::2], full, 3),
    "factors": (jaxem.FactorAnalysis(1), ROWS, diagonal, 3),
    "chain": (jaxem.HMM(2, jaxem.Gaussian("diag")), ROWS, diagonal, 3),
}  # fmt: skip
DEFAULT = ("regression", "random intercept", "censored", "gaussian", "autoregression")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in DEFAULT else pytest.mark.published) for n in CASES])
def test_float32_in_other_units(x64, name):
    model, data, change, width = CASES[name]
    fit = lambda data: jaxem.fit(model, data, key=jax.random.key(0))  # noqa: E731
    right, data = fit(data), model.validate(data)
    size = len(jax.tree.leaves(data)[0])
    for offset, scale in ((1e4, 1.0), (0.0, 1e6), (0.0, 1e-6)):
        affine = change(width, offset, scale)
        found = fit(cast(rescaled_data(data, affine), np.dtype(np.float32)))
        assert found.loglik.dtype == np.float32 and found.converged, (offset, scale)
        lost = np.broadcast_to(model.log_abs_det(data, affine), size).sum()
        assert float(found.loglik) + lost == pytest.approx(float(right.loglik), abs=0.05), (offset, scale)
        back = model.rescale_params(jax.tree.map(lambda x: np.asarray(x, float), found.params), affine.inverted())
        for got, want in zip(jax.tree.leaves(back), jax.tree.leaves(right.params), strict=True):
            # Sorted: rounding may give components in another order.
            np.testing.assert_allclose(np.sort(got, None), np.sort(want, None), rtol=2e-2, atol=5e-2)


def test_a_constant_in_a_table_says_nothing(dtype):
    table = stats.norm.logpdf(RNG.normal(Z)[:, None], [0, 1, 2]).astype(dtype)
    right, found = (jaxem.fit(jaxem.Proportions(), x) for x in (table, table - table.dtype.type(512)))
    assert found.converged and int(right.n_steps) > 30
    np.testing.assert_allclose(found.params["shares"], right.params["shares"], atol=2e-3)
    assert float(found.loglik) + 512 * N == pytest.approx(float(right.loglik), abs=0.05)
