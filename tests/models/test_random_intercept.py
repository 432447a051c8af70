"""A random intercept: a published figure, and the normal density that it implies."""

import json

import jax.numpy as jnp
import numpy as np
from scipy import stats
from support import DATA

import jaxem

TIGHT = jaxem.Stop(loglik_rtol=1e-15, param_rtol=1e-11)
CLASSICS = json.loads((DATA / "classics.json").read_text())


def test_rail(x64):
    """Travel times in six rails: a random intercept (Pinheiro and Bates 2000)."""
    case = CLASSICS["rail"]
    result = jaxem.fit(jaxem.RandomIntercept(), np.array(case["rails"], float), algorithm=jaxem.Squarem(), stop=TIGHT)
    np.testing.assert_allclose(result.loglik, -64.28001847, atol=1e-8)
    np.testing.assert_allclose(result.params["coefficients"], [case["mean"]], rtol=1e-8)
    np.testing.assert_allclose(result.params["level_variance"], case["var_rail"], rtol=1e-6)
    np.testing.assert_allclose(result.params["noise_variance"], case["var_residual"], rtol=1e-6)


def test_random_intercept_of_ragged_groups(x64):
    """Inputs and groups of different sizes: the multivariate normal density that the model implies."""
    rng = np.random.default_rng(0)
    y, inputs = rng.normal(size=(5, 4)), rng.normal(size=(5, 4, 2))
    y[0, 2:], y[3, 0] = np.nan, np.nan
    model = jaxem.RandomIntercept()
    params = {"coefficients": jnp.array([0.5, -1.0, 0.2]), "level_variance": jnp.array(0.7), "noise_variance": jnp.array(0.4)}
    got = model.log_prob(params, model.validate({"y": y, "inputs": inputs}))
    for value, row, z in zip(got, y, inputs, strict=True):
        seen = ~np.isnan(row)
        mean = z[seen] @ [0.5, -1.0] + 0.2
        spread = 0.7 * np.ones((seen.sum(), seen.sum())) + 0.4 * np.eye(seen.sum())
        np.testing.assert_allclose(value, stats.multivariate_normal(mean, spread).logpdf(row[seen]), rtol=1e-10)
