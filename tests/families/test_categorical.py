"""Categorical components against frequencies, modes and EM written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from components import CASES, answers, start
from scipy import special

import jaxem

NEVER = jaxem.Stop(loglik_rtol=None)
TIGHT = jaxem.Stop(loglik_rtol=1e-14)


def fit(family, k, x, **options):
    return jaxem.fit(jaxem.Mixture(k, family), x, **options)


@pytest.mark.parametrize("columns", [None, 4])
def test_one_categorical_is_the_frequencies(dtype, columns):
    x = answers()
    x = x[:, 0] if columns is None else x
    result = fit(jaxem.Categorical(3), 1, x, key=jax.random.key(0))
    frequencies = (x[..., None] == np.arange(3)).mean(0)
    probs = result.params["components"]["probs"]
    assert probs.shape == (1, *frequencies.shape) and probs.dtype == dtype
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(probs[0], frequencies, rtol=tolerance)
    assert float(result.loglik) == pytest.approx(len(x) * special.xlogy(frequencies, frequencies).sum(), rel=tolerance)


def test_impossible_codes_stay_impossible(x64):
    """A probability of zero is a structural zero: EM never raises it, and nothing turns into NaN."""
    x = np.array([0, 0, 1, 1, 2, 2, 2])
    init = start(2, probs=[[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    result = fit(jaxem.Categorical(3), 2, x, init=init, max_steps=50, stop=NEVER)
    probs = np.asarray(result.params["components"]["probs"])
    assert probs[0, 2] == 0 and probs[1, 0] == 0 and np.isfinite(probs).all()
    np.testing.assert_allclose(np.asarray(result.params["weights"]) @ probs, [2 / 7, 2 / 7, 3 / 7], atol=1e-9)


@pytest.mark.parametrize("concentration", [2.5, [1.0, 2.0, 4.0]])
def test_dirichlet_prior_gives_the_mode(dtype, concentration):
    x = answers(60)
    family = jaxem.Categorical(3, jaxem.Dirichlet(jnp.asarray(concentration)))
    result = fit(family, 1, x, key=jax.random.key(0))
    total = (x[..., None] == np.arange(3)).sum(0) + np.asarray(concentration) - 1
    wanted = total / total.sum(-1, keepdims=True)
    np.testing.assert_allclose(result.params["components"]["probs"][0], wanted, rtol=1e-5 if dtype == np.float32 else 1e-12)


def test_dirichlet_priors_of_weights_and_of_classes(x64):
    _, x, init, density, _ = CASES["categorical"]
    model = jaxem.Mixture(2, jaxem.Categorical(3, jaxem.Dirichlet(2.0)), jaxem.Dirichlet(11.0))
    result = jaxem.fit(model, x, init=init, stop=TIGHT)
    # At a mode one more step of EM with pseudo-counts, written out, moves nothing.
    params = jax.tree.map(np.asarray, result.params)
    joint = np.log(params["weights"]) + density(params["components"], x)
    responsibilities = np.exp(joint - special.logsumexp(joint, axis=1, keepdims=True))
    weights = responsibilities.sum(0) + 10
    total = np.einsum("nk,ndv->kdv", responsibilities, x[..., None] == np.arange(3)) + 1
    np.testing.assert_allclose(params["weights"], weights / weights.sum(), atol=1e-5)
    np.testing.assert_allclose(params["components"]["probs"], total / total.sum(-1, keepdims=True), atol=1e-5)


def test_only_categories_that_occur_are_counted(x64):
    rng = np.random.default_rng(0)
    x = np.stack([rng.integers(0, levels, 50) for levels in (2, 4, 3)], 1)
    assert jaxem.Mixture(2, jaxem.Categorical(4)).n_free_params(x) == 1 + 2 * (1 + 3 + 2)
    missing = np.where(np.arange(150).reshape(50, 3) % 7 == 0, -1, x)
    assert jaxem.Mixture(2, jaxem.Categorical(4, missing="marginal")).n_free_params(missing) == 1 + 2 * (1 + 3 + 2)
    assert jaxem.Single(jaxem.Categorical(4)).n_free_params(x[:, 0]) == 1
    # A prior gives every category a probability that the data move.
    assert jaxem.Mixture(2, jaxem.Categorical(4, jaxem.Dirichlet(2.0))).n_free_params(x) == 1 + 2 * 9
