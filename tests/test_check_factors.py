"""The laws on factor analysis, single densities, and mixtures whose rows lack entries."""

import jax
import numpy as np
import pytest
from conftest import clusters

import jaxem
from jaxem.check import LAWS

pytestmark = pytest.mark.laws
DERIVED = {
    "fisher": "the E-step is derived: the chain rule makes it so, and it would prove nothing",
    "e-step-matches-derived": "the E-step is derived",
    "local": "the model has no local",
    "device-count": "there is only one device",
}
NO_POSTERIOR = {"posterior-rows-sum-to-one": "the model has no posterior"}
FACTORS = {"posterior-rows-sum-to-one": "its posterior is not one array of probabilities"}
PATTERN = np.array([[1, 0], [1, 0], [1, 1], [0, 1], [0, 1]], bool)

CASES = {
    "normal": (jaxem.MultivariateNormal(), NO_POSTERIOR),
    "t": (jaxem.MultivariateT(), NO_POSTERIOR),
    "factors": (jaxem.FactorAnalysis(2), FACTORS),
    "pattern": (jaxem.FactorAnalysis(2, pattern=PATTERN), FACTORS),
    "components": (jaxem.PPCA(2), FACTORS),
    "mixture": (jaxem.GaussianMixture(2, missing="marginal"), {}),
    "mixture-tied": (jaxem.GaussianMixture(2, "tied", missing="marginal"), {}),
    "mixture-of-t": (jaxem.Mixture(2, jaxem.StudentT("diag", missing="marginal")), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_laws(name):
    x = clusters(80, 5 if "factors" in name or name in ("pattern", "components") else 3, 2, seed=7)
    x[np.random.default_rng(8).random(x.shape) < 0.2] = np.nan
    model, skipped = CASES[name]
    with jax.enable_x64(True):
        report = jaxem.check_model(model, x)
    skipped = DERIVED | skipped
    assert report.skipped == skipped
    assert report.ran == [law.name for law in LAWS if law.name not in skipped]
