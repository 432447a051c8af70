"""MLEM against plain NumPy, in its matrix and function forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxem
from jaxem.operators import convolve


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


def test_an_image_of_sixteen_bits_keeps_its_digits():
    """In float32 sums of counts of thousands, logarithms of their factorials among them, once cost 235 of 106 517."""
    rng = np.random.default_rng(0)
    a, x = rng.random((400, 6)), rng.uniform(2000, 12000, 6)
    y = rng.poisson(0.8 * (a @ x))
    with jax.enable_x64(False):
        data = {"y": y.astype(np.float32), "row": a.astype(np.float32)}
        result = jaxem.fit(jaxem.Superposition(), data, max_steps=100)
    exact = stats.poisson(a @ np.asarray(result.params["rate"], float)).logpmf(y).sum()
    assert float(result.loglik) == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("size", [15, 31])
def test_deep_tails_of_a_point_spread_function(size):
    """By FFT a source that nothing sees has the sensitivity of rounding, and its rate once grew to 1e8 in float32."""
    rng = np.random.default_rng(0)
    y = rng.poisson(np.full((1, 40, 40), 100.0)).astype(float)
    profile = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / 1.5) ** 2)
    kernel = np.outer(profile, profile) / profile.sum() ** 2
    shape = tuple(np.add(y.shape[1:], kernel.shape) - 1)

    def deconvolved(dtype):
        model = jaxem.Superposition(convolve, shape, kernel.astype(dtype))
        return jaxem.fit(model, {"y": y.astype(dtype)}, max_steps=30, stop=jaxem.Stop(None))

    double = deconvolved(np.float64)
    with jax.enable_x64(False):
        single = deconvolved(np.float32)
    assert float(single.loglik) == pytest.approx(float(double.loglik), rel=1e-5)
    inside = slice((size - 1) // 2, (size - 1) // 2 + 40)
    np.testing.assert_allclose(single.params["rate"][inside, inside], double.params["rate"][inside, inside], rtol=2e-3)
    assert float(single.params["rate"].max()) < 1e4


def test_an_operator_whose_rounding_falls_below_zero():
    """A dark bin by FFT: once a mean below zero, and FitError."""
    image = np.zeros((1, 24, 24))
    image[0, 8:12, 8:12] = 200.0
    kernel = np.zeros((15, 15))
    kernel[5:10, 5:10] = 1 / 25
    with jax.enable_x64(False):
        model = jaxem.Superposition(convolve, (38, 38), kernel.astype(np.float32))
        result = jaxem.fit(model, {"y": image.astype(np.float32)}, max_steps=20, stop=jaxem.Stop(None))
        assert np.isfinite(result.loglik) and (model.mean(result.params, {"y": image.astype(np.float32)}) >= 0).all()
