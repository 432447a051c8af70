"""What log-gamma leaves to Stirling's formula, and a gamma distribution's shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from jaxem.numerics.special import gamma_normalizer, gamma_shape, stirling_rest


def test_stirling_rest_is_what_large_numbers_leave(dtype):
    x = np.logspace(-4, 3, 500).astype(dtype)
    exact = x.astype(float)
    single = dtype == np.float32
    wanted = special.gammaln(exact) - (exact - 0.5) * np.log(exact) + exact
    np.testing.assert_allclose(stirling_rest(jnp.asarray(x)), wanted, rtol=1e-5 if single else 1e-11)
    # float32 keeps the digits of log x - digamma(x), which a difference of the two would lose.
    slope = jax.vmap(jax.grad(gamma_normalizer))(jnp.asarray(x))
    np.testing.assert_allclose(slope, np.log(exact) - special.digamma(exact), rtol=5e-5 if single else 1e-7)


@pytest.mark.parametrize("shape", [0.05, 1.0, 30.0, 1e4])
def test_gamma_shape_is_the_maximum_of_scipy(x64, shape):
    u = np.random.default_rng(0).gamma(shape, 1 / shape, 500)
    u = np.maximum(u / u.mean(), 1e-300)
    found = gamma_shape(jnp.asarray((np.log(u) - u + 1).mean()), 1e-4, 1e6)
    level = -np.log(u).mean()
    wanted = optimize.brentq(lambda s: np.log(s) - special.digamma(s) - level, 1e-3, 1e5, xtol=1e-12)
    assert float(found) == pytest.approx(wanted, rel=1e-5)
