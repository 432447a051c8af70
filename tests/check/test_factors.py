"""The laws on factor analysis, single densities, and mixtures whose rows lack entries."""

import jax
import numpy as np
import pytest
from support import DERIVED, MOMENTS, NO_POSTERIOR, assert_laws, clusters

import jaxem

pytestmark = pytest.mark.laws
PATTERN = np.array([[1, 0], [1, 0], [1, 1], [0, 1], [0, 1]], bool)

CASES = {
    "normal": (jaxem.MultivariateNormal(), NO_POSTERIOR),
    "t": (jaxem.MultivariateT(), NO_POSTERIOR),
    "factors": (jaxem.FactorAnalysis(2), MOMENTS),
    "pattern": (jaxem.FactorAnalysis(2, pattern=PATTERN), MOMENTS),
    "components": (jaxem.PPCA(2), MOMENTS),
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
        assert_laws(model, x, DERIVED | skipped)
