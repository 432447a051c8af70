"""The local level on the Nile, and its statistics against a smoother written out in NumPy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def nile():
    return np.loadtxt(Path(__file__).parent / "data/Nile.csv", skiprows=1)


def smoother_statistics(y, q, h, initial):
    """Sums of E (x_t - x_{t-1})^2 and E (y_t - x_t)^2 by Rauch, Tung and Striebel's smoother."""
    n = len(y)
    a, p = np.zeros(n), np.zeros(n)  # filtered
    prior_mean, prior = 0.0, initial
    predicted = np.zeros(n)
    for t in range(n):
        predicted[t] = prior
        gain = prior / (prior + h)
        a[t], p[t] = prior_mean + gain * (y[t] - prior_mean), (1 - gain) * prior
        prior_mean, prior = a[t], p[t] + q
    m, v = a.copy(), p.copy()
    steps = 0.0
    for t in range(n - 2, -1, -1):
        back = p[t] / predicted[t + 1]
        m[t] = a[t] + back * (m[t + 1] - a[t])
        v[t] = p[t] + back**2 * (v[t + 1] - predicted[t + 1])
        steps += (m[t + 1] - m[t]) ** 2 + v[t + 1] + v[t] - 2 * back * v[t + 1]
    return steps, ((y - m) ** 2 + v).sum()


def test_nile():
    result = jaxem.fit(jaxem.LocalLevel(), nile(), stop=jaxem.Stop(loglik_rtol=None, param_rtol=1e-10), max_steps=20_000)
    assert result.converged
    assert abs(float(result.params["level"]) - 1468.5003) < 1e-4
    assert abs(float(result.params["observation"]) - 15099.6859) < 1e-4
    assert abs(float(result.loglik) + 641.58557835) < 1e-6
    assert (np.diff(result.history) > -1e-9).all()


def test_statistics_are_the_smoothers():
    model, y = jaxem.LocalLevel(), nile()
    params = {"level": jnp.asarray(900.0), "observation": jnp.asarray(2e4)}
    stats = jax.grad(lambda eta: model.log_marginal(eta, y[None], jaxem.Rows()).sum())(model.natural(params))
    steps, noise = smoother_statistics(y, 900.0, 2e4, 1e7)
    np.testing.assert_allclose(stats["level_precision"], steps, rtol=1e-10)
    np.testing.assert_allclose(stats["observation_precision"], noise, rtol=1e-10)
    np.testing.assert_allclose([stats["level_log"], stats["observation_log"]], [99, 100], rtol=1e-12)


def test_many_series_and_recovery():
    model = jaxem.LocalLevel(initial_variance=10.0)
    truth = {"level": jnp.asarray(0.5), "observation": jnp.asarray(2.0)}
    y = model.sample(jax.random.key(0), truth, 40, 100)
    result = jaxem.fit(model, y)
    np.testing.assert_allclose(result.params["level"], 0.5, rtol=0.2)
    np.testing.assert_allclose(result.params["observation"], 2.0, rtol=0.1)
    np.testing.assert_allclose(model.log_prob(result.params, y).sum(), result.loglik, rtol=1e-12)


def test_float32_stays_float32():
    result = jaxem.fit(jaxem.LocalLevel(), nile().astype(np.float32), max_steps=20)
    assert {x.dtype for x in jax.tree.leaves(result.params)} == {jnp.dtype("float32")}


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2 times"):
        jaxem.fit(jaxem.LocalLevel(), np.zeros((3, 1)))
