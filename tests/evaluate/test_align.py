"""Components and states are matched, whatever their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.evaluate.align import align, component_axes, permute

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_components_are_matched(faithful, covariance):
    model = jaxem.GaussianMixture(3, covariance)
    shape = np.eye(2) * [0.2, 40.0]
    components = {"mean": jnp.array([[2.0, 55.0], [4.0, 75.0], [4.5, 85.0]]), "covariance": shape * np.ones((3, 1, 1))}
    if covariance == "tied":
        components["covariance"] = shape
    params = jax.tree.map(jnp.asarray, {"weights": np.array([0.3, 0.3, 0.4]), "components": components})
    axes = component_axes(model, faithful)
    assert axes["components"]["covariance"] == (() if covariance == "tied" else (0,))
    order = jnp.array([2, 0, 1])
    shuffled = permute(params, order, axes)
    np.testing.assert_array_equal(shuffled["components"]["mean"], params["components"]["mean"][order])
    back = jax.jit(lambda p, q: align(model, p, model.posterior(q, faithful), faithful, axes))(shuffled, params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_states_are_matched():
    data = jaxem.sequences([np.arange(8.0), np.arange(5.0)])
    model = jaxem.HMM(3, jaxem.Poisson())
    params = {
        "initial": jnp.array([0.5, 0.3, 0.2]),
        "transition": jnp.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]),
        "emission": {"rate": jnp.array([1.0, 4.0, 8.0])},
    }
    axes = component_axes(model, data)
    shuffled = permute(params, jnp.array([1, 2, 0]), axes)
    np.testing.assert_array_equal(shuffled["transition"][0], [0.8, 0.1, 0.1])
    back = jax.jit(lambda p, q: align(model, p, model.posterior(q, data), data, axes))(shuffled, params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    drawn = model.sample_like(jax.random.key(0), params, data)
    assert drawn.x.shape == data.x.shape and drawn.length.tolist() == [8, 5]
