"""MLEM against plain NumPy, in its matrix and function forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def problem(background=0.0):
    rng = np.random.default_rng(0)
    a = rng.gamma(0.5, size=(60, 12))
    a[:, 5] = 0  # a source that nothing sees
    truth = rng.gamma(2.0, size=12) * 5
    b = np.full(60, background)
    return a, b, rng.poisson(a @ truth + b).astype(float)


def mlem(a, b, y, x, n_steps):
    s = a.sum(0)
    for _ in range(n_steps):
        update = x * (a.T @ (y / (a @ x + b))) / np.where(s > 0, s, 1)
        x = np.where(s > 0, update, x)
    return x


def project(a, x):
    return a @ x.reshape(-1)


@pytest.mark.parametrize("background", [0.0, 3.0])
@pytest.mark.parametrize("form", ["matrix", "function", "sensitivity"])
def test_equals_mlem(form, background):
    a, b, y = problem(background)
    start = np.linspace(1, 3, 12)
    if form == "matrix":
        model, data, shape = jaxem.Superposition(), {"y": y, "row": a, "background": b}, (12,)
    else:
        s = a.sum(0).reshape(3, 4) if form == "sensitivity" else None
        model = jaxem.Superposition(project, (3, 4), jnp.asarray(a), s)
        data, shape = {"y": y[None], "background": b[None]}, (3, 4)
    result = jaxem.fit(model, data, init={"rate": start.reshape(shape)}, max_steps=10, block_size=7, stop=jaxem.Stop(None))
    np.testing.assert_allclose(result.params["rate"].reshape(-1), mlem(a, b, y, start, 10), rtol=1e-10)
    assert result.n_steps == 10 and (np.diff(result.history) > 0).all()
    assert result.params["rate"].shape == shape
    assert result.params["rate"].reshape(-1)[5] == start[5]
    from scipy.stats import poisson

    mean = a @ np.asarray(result.params["rate"]).reshape(-1) + b
    np.testing.assert_allclose(result.loglik, poisson.logpmf(y, mean).sum(), rtol=1e-12)


def test_default_start_and_structural_zeros():
    a, _, y = problem()
    model = jaxem.Superposition()
    result = jaxem.fit(model, {"y": y, "row": a}, max_steps=200)
    np.testing.assert_allclose((a @ np.asarray(result.params["rate"])).sum(), y.sum(), rtol=1e-10)
    assert result.params["rate"][5] == 0
    start = np.ones(12)
    start[3] = 0
    fixed = jaxem.fit(model, {"y": y, "row": a}, init={"rate": start}, max_steps=20)
    assert fixed.params["rate"][3] == 0 and np.isfinite(fixed.loglik)
    assert model.n_free_params({"y": y, "row": a}) == 12


def test_penalty_ascends():
    a, b, y = problem(1.0)
    data = {"y": y, "row": a, "background": b}
    free = jaxem.fit(jaxem.Superposition(), data, max_steps=50)
    smooth = jaxem.fit(jaxem.Superposition(), data, max_steps=50, penalty=roughness)
    assert np.diff(smooth.history).min() > -1e-9
    assert roughness(smooth.params) < roughness(free.params)


def roughness(params):
    return 0.5 * jnp.square(jnp.diff(params["rate"])).sum()


def test_bad_input():
    with pytest.raises(ValueError, match="shape of x"):
        jaxem.fit(jaxem.Superposition(project), {"y": np.ones((1, 3))})
    with pytest.raises(ValueError, match="dict of"):
        jaxem.fit(jaxem.Superposition(), np.ones(3))
    with pytest.raises(ValueError, match="must have shape"):
        jaxem.fit(jaxem.Superposition(project, (12,), jnp.ones((5, 12))), {"y": np.ones((1, 3))})
