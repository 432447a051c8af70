"""Bernoulli components stay inside the unit interval; priors give the mode."""

import jax.numpy as jnp
import numpy as np
import pytest
from components import bits, fit_one, tables
from scipy import special

import jaxem


def test_one_bernoulli_is_the_mean_and_stays_inside(dtype):
    x = bits().astype(dtype)
    x[:, 0], x[:, 1] = 0, 1
    result = fit_one(jaxem.Bernoulli(), x)
    probs = np.asarray(result.params["components"]["probs"])[0]
    np.testing.assert_allclose(probs, x.mean(0), rtol=1e-6, atol=1e-12)
    assert (probs > 0).all() and (probs < 1).all() and probs.dtype == dtype
    again = jaxem.fit(jaxem.Mixture(1, jaxem.Bernoulli()), x, init=result.params)
    assert float(again.loglik) == pytest.approx(float(result.loglik), rel=1e-6)
    free = x[:, 2:].mean(0, dtype=float)
    wanted = len(x) * -special.entr([free, 1 - free]).sum()
    assert float(result.loglik) == pytest.approx(wanted, rel=1e-5)


def test_dirichlet_priors_give_the_mode(x64):
    x = bits(50)
    result = fit_one(jaxem.Bernoulli(jaxem.Dirichlet(jnp.asarray([2.0, 4.0]))), x)
    np.testing.assert_allclose(result.params["components"]["probs"][0], (x.sum(0) + 3) / (len(x) + 4), rtol=1e-12)
    x = tables(50)
    result = fit_one(jaxem.Multinomial(jaxem.Dirichlet(3.0)), x)
    total = x.sum(0) + 2
    np.testing.assert_allclose(result.params["components"]["probs"][0], total / total.sum(), rtol=1e-12)
