"""Models from functions: genetic linkage (Dempster, Laird and Rubin 1977, section 1)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.constraints import UnitInterval
from jaxem.numerics import lse, safe_log


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


COUNTS = np.array([125.0, 18.0, 20.0, 34.0])
PI = 0.6268214979


def cells(params, cell):
    """Log-probabilities of the two classes that the first cell merges; the others have one."""
    pi = params["pi"]
    zero = jnp.zeros_like(pi)
    table = jnp.array([[zero + 0.5, pi / 4], [(1 - pi) / 4, zero], [(1 - pi) / 4, zero], [pi / 4, zero]])
    return safe_log(table[cell])


def natural(params):
    return {"log_pi": jnp.log(params["pi"]), "log_rest": jnp.log1p(-params["pi"])}


def linkage(eta, data):
    half = jnp.broadcast_to(jnp.log(jnp.asarray(0.5, data.dtype)), (1,))
    quarter = jnp.log(jnp.asarray(0.25, data.dtype))
    first = lse(jnp.stack([half, (quarter + eta["log_pi"])[None]]), 0)
    return data @ jnp.stack([first[0], quarter + eta["log_rest"], quarter + eta["log_rest"], quarter + eta["log_pi"]])


def m_step(stats, params):
    del params
    return {"pi": stats["log_pi"] / (stats["log_pi"] + stats["log_rest"])}


def test_log_joint():
    model = jaxem.log_joint(cells, init={"pi": 0.5}, constraints={"pi": UnitInterval()})
    stop = jaxem.Stop(None, None, 1e-12)
    result = jaxem.fit(model, np.arange(4), weight=COUNTS, stop=stop)
    assert result.converged and abs(float(result.params["pi"]) - PI) < 1e-8
    blocks = jaxem.fit(model, np.arange(4), weight=COUNTS, stop=stop, block_size=3)
    assert abs(float(blocks.params["pi"]) - PI) < 1e-8
    assert model.n_free_params(np.arange(4)) == 1
    np.testing.assert_allclose(model.posterior(result.params, np.arange(4))[0], [2 / (2 + PI), PI / (2 + PI)], atol=1e-8)
    np.testing.assert_array_equal(model.predict(result.params, np.arange(4)), 0)
    np.testing.assert_allclose(COUNTS @ model.log_prob(result.params, np.arange(4)), result.loglik, rtol=1e-12)


@pytest.mark.parametrize("closed", [m_step, None])
def test_log_marginal(closed):
    model = jaxem.log_marginal(
        natural=natural, log_marginal=linkage, m_step=closed, init={"pi": 0.5}, constraints={"pi": UnitInterval()}
    )
    result = jaxem.fit(model, COUNTS[None], stop=jaxem.Stop(None, None, 1e-12))
    assert result.converged and abs(float(result.params["pi"]) - PI) < 1e-8
    assert model.n_free_params(COUNTS[None]) == 1


def test_rate_of_convergence():
    model = jaxem.log_marginal(natural=natural, log_marginal=linkage, m_step=m_step, init={"pi": 0.5})
    errors = []
    for n_steps in (4, 5, 6):
        result = jaxem.fit(model, COUNTS[None], max_steps=n_steps, stop=jaxem.Stop(None))
        errors.append(float(result.params["pi"]) - 0.62682149787098)
    np.testing.assert_allclose(np.divide(errors[1:], errors[:-1]), 0.13277873, atol=1e-4)


def test_labels_exclude():
    model = jaxem.log_joint(cells, init={"pi": 0.5}, constraints={"pi": UnitInterval()})
    # The first cell's count is known to be of the first class: pi is then 34 / 72.
    result = jaxem.fit(model, np.arange(4), weight=COUNTS, labels=np.array([0, -1, -1, -1]), stop=jaxem.Stop(None, None, 1e-12))
    np.testing.assert_allclose(result.params["pi"], 34 / 72, atol=1e-8)


def test_bad_input():
    with pytest.raises(ValueError, match="strictly between"):
        jaxem.fit(jaxem.log_joint(cells, init={"pi": 1.5}, constraints={"pi": UnitInterval()}), np.arange(4))
    with pytest.raises(ValueError, match="lead with one N"):
        jaxem.fit(jaxem.log_joint(cells, init={"pi": 0.5}), {"a": np.ones(3), "b": np.ones(4)})
