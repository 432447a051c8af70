"""Directions against SciPy: the maximum, collapse, samples, and no jump at pi."""

import jax.numpy as jnp
import numpy as np
import pytest
from components import KEY, fit_one, scores, start
from scipy import integrate, special, stats

import jaxem


@pytest.mark.parametrize("concentration", [0.2, 4.0, 500.0])
def test_one_von_mises_is_the_maximum_of_scipy(dtype, concentration):
    x = np.random.default_rng(0).vonmises(2.9, concentration, 400).astype(dtype)
    result = fit_one(jaxem.VonMises(), x)
    kappa, direction, _ = stats.vonmises.fit(x.astype(float), fscale=1)
    components = result.params["components"]
    assert np.cos(float(components["mean"][0]) - direction) == pytest.approx(1, abs=1e-6)
    assert float(components["concentration"][0]) == pytest.approx(kappa, rel=1e-3 if dtype == np.float32 else 1e-6)
    wanted = stats.vonmises(kappa, direction).logpdf(x.astype(float)).sum()
    assert float(result.loglik) == pytest.approx(wanted, rel=1e-4 if dtype == np.float32 else 1e-9)


def test_angles_that_collapse_are_degenerate(x64):
    result = jaxem.fit(jaxem.Mixture(1, jaxem.VonMises()), np.full(20, 1.0), key=KEY)
    assert int(result.status) == jaxem.Status.DEGENERATE


def test_directions_do_not_jump_at_pi(x64):
    x = np.random.default_rng(0).vonmises(np.pi, 2.0, 200)
    init = start(1, mean=[np.pi - 0.01], concentration=[1.0])
    result = jaxem.fit(jaxem.Mixture(1, jaxem.VonMises()), x, init=init)
    assert abs(float(result.params["components"]["mean"][0]) - np.pi) < 0.5


@pytest.mark.parametrize("concentration", [1e-6, 0.3, 2.0, 50.0, 1e5])
def test_von_mises_samples_have_its_distribution(dtype, concentration):
    params = {"mean": jnp.asarray([1.0], dtype), "concentration": jnp.asarray([concentration], dtype)}
    x = np.asarray(jaxem.VonMises().sample(KEY, params, jnp.zeros(20_000, int)), float)
    deviation = (x - 1 + np.pi) % (2 * np.pi) - np.pi
    assert stats.kstest(deviation, stats.vonmises(concentration).cdf).pvalue > 1e-3
    resultant = special.i1e(concentration) / special.i0e(concentration)
    assert np.cos(deviation).mean() == pytest.approx(resultant, abs=0.03)


def test_von_mises_normaliser(x64):
    params = {"mean": jnp.asarray([0.4]), "concentration": jnp.asarray([2.0])}
    total, _ = integrate.quad(lambda x: np.exp(scores(jaxem.VonMises(), params, np.array([x]))[0, 0]), -np.pi, np.pi)
    assert total == pytest.approx(1, rel=1e-9)
