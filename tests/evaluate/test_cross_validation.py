"""Cross-validation equals a loop over folds, and compiles once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.evaluate import cross_validation


@pytest.fixture(scope="module")
def data():
    dtype = np.float64 if jax.config.jax_enable_x64 else np.float32
    return jaxem.datasets.old_faithful().astype(dtype)


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_validation_equals_a_loop_over_folds(data, weighted):
    model, key = jaxem.GaussianMixture(2), jax.random.key(3)
    weight = np.where(np.arange(len(data)) % 7 == 0, 2.0, 1.0) if weighted else None
    options = {"n_restarts": 2, "stop": jaxem.Stop(loglik_rtol=1e-13), "max_steps": 500}
    cv = jaxem.cross_validate(model, data, key=key, n_folds=4, weight=weight, **options)
    fold, present = np.asarray(cv.fold), np.ones(len(data)) if weight is None else weight
    assert sorted(np.bincount(fold)) == [68] * 4
    for f in range(4):
        one = jaxem.fit(model, data, key=key, weight=present * (fold != f), **options)
        held = present * (fold == f)
        expected = held @ np.asarray(model.log_prob(one.params, jnp.asarray(data)))
        np.testing.assert_allclose(cv.loglik[f], expected, rtol=1e-3 if data.dtype == np.float32 else 1e-7)
        assert cv.n_held_out[f] == held.sum()
    np.testing.assert_allclose(cv.mean, cv.loglik.sum() / present.sum(), rtol=1e-6)


def test_cross_validation_compiles_once_for_new_numbers(data):
    compiled = cross_validation._cross_validate
    before = None
    for seed, tolerance in ((0, 1e-3), (1, 1e-4)):
        stop = jaxem.Stop(loglik_rtol=tolerance)
        jaxem.cross_validate(jaxem.GaussianMixture(1), data, key=jax.random.key(seed), n_folds=3, stop=stop)
        before = before or compiled._cache_size()
    assert compiled._cache_size() == before


@pytest.mark.published
def test_cross_validation_of_a_penalised_fit(data):
    """The penalty's numbers are traced, frozen leaves may be a prefix tree, and each fold is the fit it says it is."""
    model, key, compiled = jaxem.GaussianMixture(2, "diag"), jax.random.key(0), cross_validation._cross_validate
    options = {"frozen": {"weights": True, "components": False}, "max_steps": 20}
    before = compiled._cache_size()
    for strength in (5.0, 50.0):
        penalty = jaxem.L2(strength, "components.mean")
        cv = jaxem.cross_validate(model, data, key=key, n_folds=3, penalty=penalty, **options)
        one = jaxem.fit(model, data, key=key, weight=(np.asarray(cv.fold) != 0) * 1.0, penalty=penalty, **options)
        np.testing.assert_allclose(cv.params["components"]["mean"][0], one.params["components"]["mean"], rtol=2e-3)
        np.testing.assert_allclose(cv.params["weights"][0], one.params["weights"], rtol=1e-6)
    assert compiled._cache_size() == before + 1


@pytest.mark.parametrize("n_folds", [1, 273])
def test_cross_validation_refuses_a_number_of_folds(data, n_folds):
    with pytest.raises(ValueError, match="n_folds must be"):
        jaxem.cross_validate(jaxem.GaussianMixture(1), data, key=jax.random.key(0), n_folds=n_folds)


def test_cross_validation_refuses_a_missing_key(data):
    with pytest.raises(ValueError, match="key must be"):
        jaxem.cross_validate(jaxem.GaussianMixture(1), data, key=None)
