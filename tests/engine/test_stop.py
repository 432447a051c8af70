"""What the default rule leaves to gain, in either precision; rules do not depend on the scale of weights."""

import jax
import numpy as np
import pytest

import jaxem

RNG = np.random.default_rng(0)
CLOSE = np.r_[RNG.normal(0, 1, (500, 2)), RNG.normal(1.5, 1, (500, 2))]
SPHERES = jaxem.GaussianMixture(2, "spherical")


def in_double(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


@pytest.fixture(scope="module")
def optimum():
    with jax.enable_x64(True):
        return jaxem.fit(SPHERES, CLOSE, key=jax.random.key(0), n_restarts=2, stop=jaxem.Stop(1e-14, to_gain=0)).loglik


@pytest.mark.parametrize("precision, lazy_loses", [(np.float32, 5e-3), (np.float64, 3e-4)])
def test_what_is_left_is_worth_a_thirtieth_of_a_standard_error(optimum, precision, lazy_loses):
    """A tolerance of the log-likelihood alone left .0146 in float32, worth .17 standard errors."""

    def left(**options):
        with jax.enable_x64(precision == np.float64):
            result = jaxem.fit(SPHERES, CLOSE.astype(precision), key=jax.random.key(0), n_restarts=2, **options)
        with jax.enable_x64(True):
            return result, float(optimum) - float(SPHERES.log_prob(in_double(result.params), CLOSE).sum())

    (lazy, far), (result, near) = left(stop=jaxem.Stop(to_gain=0)), left()
    assert far > lazy_loses and np.isnan(lazy.to_gain)
    assert result.converged and result.stop_reason == "loglik_rtol" and near < 0.03**2 / 2
    assert near < 2 * float(result.to_gain) <= 5e-4
    assert result.n_steps <= (4 if precision == np.float32 else 2) * lazy.n_steps


def test_a_plateau_is_told(x64):
    """A tolerance so loose that twice its steps do not lead there."""
    result = jaxem.fit(SPHERES, CLOSE, key=jax.random.key(0), stop=jaxem.Stop(loglik_rtol=1e-3, to_gain=2.5e-4))
    assert result.converged and result.to_gain > 1e-2 and "at a plateau" in str(result)
    assert "plateau" not in str(jaxem.fit(SPHERES, CLOSE, key=jax.random.key(0)))


def test_weights_have_no_scale(x64):
    """Weights of 1e-9 once stopped after two steps."""
    fits = [jaxem.fit(SPHERES, CLOSE, key=jax.random.key(0), weight=np.full(1000, scale)) for scale in (1e-9, 1.0, 1e9)]
    assert len({int(fit.n_steps) for fit in fits}) == 1 and fits[0].n_steps > 10
    for fit in fits:
        np.testing.assert_allclose(fit.params["components"]["mean"], fits[1].params["components"]["mean"], rtol=1e-9)
        assert float(fit.to_gain) == pytest.approx(float(fits[1].to_gain), rel=1e-3)
