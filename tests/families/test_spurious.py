"""What owes its likelihood to chance: too few rows, or much thinner than the others on not many."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.families.base import FEW, THIN

#: A variance below THIN times the pooled one, and one above.
NARROW, WIDE = THIN / 2, 0.1


def components(shape, variance):
    """Parameters in 3 columns, the second component of the given variance in its last column."""
    variances = np.ones((2, 3))
    variances[1, 2] = variance
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    covariance = {
        "full": turn @ (variances[:, :, None] * np.eye(3)) @ turn.T,
        "tied": np.eye(3),
        "diag": variances,
        "spherical": variances[:, 2],
    }
    return {"mean": jnp.zeros((2, 3)), "covariance": jnp.asarray(covariance[shape])}


@pytest.mark.parametrize(("shape", "needed"), [("full", 4), ("diag", 2), ("spherical", 2)])
def test_gaussian_components(shape, needed):
    def found(count, variance, family=jaxem.Gaussian(shape)):  # noqa: B008
        return bool(family.spurious({"log_det": jnp.asarray([100.0, count])}, components(shape, variance)))

    assert found(needed - 0.5, 1) and not found(needed, 1)
    assert found(FEW * needed - 1, NARROW) and not found(FEW * needed - 1, WIDE)
    assert not found(FEW * needed, NARROW)
    as_t = {"df": jnp.ones(2), **components(shape, NARROW)}
    as_t["scale"] = as_t.pop("covariance")
    family = jaxem.StudentT(shape)
    assert bool(family.spurious({"log_det": jnp.asarray([100.0, needed])}, as_t))


def test_components_that_nothing_lets_collapse_are_never_thin():
    tied = jaxem.Gaussian("tied")
    assert not bool(tied.spurious({"log_det": jnp.asarray([100.0, 1.0])}, components("tied", NARROW)))
    assert jaxem.Gaussian(prior=jaxem.NormalInverseWishart.mclust(np.eye(3), 2)).spurious is None


def test_lines():
    def found(count, variance, **options):
        params = {"intercept": jnp.zeros(2), "coefficients": jnp.zeros((2, 1)), "variance": jnp.asarray([1.0, variance])}
        return bool(jaxem.LinearRegression(**options).spurious({"log_scale": jnp.asarray([100.0, count])}, params))

    assert found(2.5, 1) and not found(3, 1)
    assert found(3 * FEW - 1, NARROW) and not found(3 * FEW, NARROW)
    assert not found(2.5, 1, switching_coefficients=False)


def test_models_ask_their_families():
    stats, params = {"log_det": jnp.asarray([100.0, 2.0])}, components("full", 1)
    assert bool(jaxem.Mixture(2).spurious({"components": stats}, {"components": params}))
    assert bool(jaxem.HMM(2, jaxem.Gaussian()).spurious({"emission": stats}, {"emission": params}))
    regimes = jaxem.MarkovAutoregression(2, 1, switching_variance=True)
    joint = {"regression": {"log_scale": jnp.asarray([50.0, 1.0, 49.0, 0.5])}}  # regimes now and before: 00, 01, 10, 11
    lines = {"coefficients": jnp.zeros(1), "variance": jnp.asarray([1.0, NARROW])}
    assert not bool(regimes.spurious(joint, lines))
    joint = {"regression": {"log_scale": jnp.asarray([98.0, 1.0, 1.0, 2.0])}}
    assert bool(regimes.spurious(joint, lines))
    both = jaxem.Product((jaxem.Poisson(), jaxem.Gaussian()), ((0,), (1, 2, 3)))
    assert bool(both.spurious(({}, stats), ({}, params)))
    assert jaxem.Mixture(2, jaxem.Poisson()).spurious is None
