"""A family of one's own, by public names alone: counts that are seen only where they are not zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln
from scipy import optimize, stats

import jaxem


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


# --- the example: at most 35 lines ---------------------------------------------------------------
@jaxem.struct
class ZeroTruncatedPoisson(jaxem.Family):
    """p(x | k) = rate^x / x! / (exp(rate) - 1) for x = 1, 2, ...; parameter `rate` (K,), data (N,)."""

    constraints = jaxem.constraints.Positive()

    def natural(self, params):
        return {"log_rate": jnp.log(params["rate"]), "normalizer": -jnp.log(jnp.expm1(params["rate"]))}

    def scores(self, natural, data):
        return natural["log_rate"][:, None] * data + natural["normalizer"][:, None] - gammaln(data + 1)

    def m_step(self, stats, params):
        """The rate at which the expected count, rate / (1 - exp(-rate)), is the mean: by Newton's method, from above."""
        present = stats["normalizer"] > 0
        mean = stats["log_rate"] / jnp.where(present, stats["normalizer"], 1)
        rate = mean
        for _ in range(20):
            expected = rate / -jnp.expm1(-rate)
            rate = jnp.maximum(rate - (expected - mean) * rate / (expected * (1 - expected + rate)), 1e-6)
        return {"rate": jnp.where(present, rate, params["rate"])}

    def template(self, data, n_components):
        return {"rate": jnp.ones((n_components,), data.dtype)}

    def n_free_params(self, n_components, data):
        return n_components

    def sample(self, key, params, component):
        """One event, at the time of the first of one or more, and those that follow it."""
        first, rest = jax.random.split(key)
        rate = params["rate"][component]
        time = -jnp.log1p(jax.random.uniform(first, rate.shape, rate.dtype) * jnp.expm1(-rate))
        return 1 + jax.random.poisson(rest, rate - time).astype(rate.dtype)


# --- what it gives -------------------------------------------------------------------------------
def counts():
    rng = np.random.default_rng(0)
    x = rng.poisson(np.where(rng.random(1_500) < 0.4, 0.8, 6.0))
    return x[x > 0].astype(float)


def test_the_maximum_is_scipys():
    x = counts()

    def loss(free):
        first, *rates = 1 / (1 + np.exp(-free[0])), *np.exp(free[1:])
        truncated = [stats.poisson(r).pmf(x) / stats.poisson(r).sf(0) for r in rates]
        return -np.log(first * truncated[0] + (1 - first) * truncated[1]).sum()

    found = optimize.minimize(loss, [0.0, 0.0, 2.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9})
    model = jaxem.Mixture(2, ZeroTruncatedPoisson())
    result = jaxem.fit(model, x, key=jax.random.key(0), stop=jaxem.Stop(None, None, 1e-10), max_steps=5_000)
    order = np.argsort(result.params["components"]["rate"])
    np.testing.assert_allclose(result.loglik, -found.fun, atol=1e-7)
    np.testing.assert_allclose(result.params["components"]["rate"][order], np.exp(found.x[1:]), rtol=1e-4)
    np.testing.assert_allclose(result.params["weights"][order[0]], 1 / (1 + np.exp(-found.x[0])), rtol=1e-4)


def test_it_is_an_emission_as_well():
    x = counts()[:200]
    result = jaxem.fit(jaxem.HMM(2, ZeroTruncatedPoisson()), x, key=jax.random.key(0), max_steps=20)
    assert (np.diff(result.history) >= -1e-9).all() and result.model.posterior(result.params, x).shape == (200, 2)


@pytest.mark.laws
def test_laws():
    jaxem.check_model(jaxem.Mixture(2, ZeroTruncatedPoisson()), counts()[:200])
