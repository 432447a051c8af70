"""Projectors and their adjoints, attenuation, masks, De Pierro's MAP: each against plain NumPy or SciPy."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, signal

import jaxem
from jaxem.operators import Grid, Lines, centred_grid, convolve, joseph, parallel_beam


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def integral(image, grid, start, end):
    """Joseph's integral along one line, pixel by pixel."""
    start, end = ((p - np.asarray(grid.origin)) / np.asarray(grid.spacing) for p in (start, end))
    way = end - start
    a = int(abs(way[1]) > abs(way[0]))
    total = 0.0
    for i in range(image.shape[a]):
        share = (i - start[a]) / way[a]
        if 0 <= share <= 1:
            place = start[1 - a] + share * way[1 - a]
            for j in range(image.shape[1 - a]):
                total += max(0, 1 - abs(place - j)) * (image[i, j] if a == 0 else image[j, i])
    return total * np.linalg.norm(way * np.asarray(grid.spacing)) / abs(way[a])


def test_joseph_is_interpolation_along_lines():
    rng = np.random.default_rng(0)
    image, grid = rng.random((7, 5)), Grid(np.array([-3.0, 1.0]), np.array([1.5, 0.8]))
    ends = rng.uniform(-6, 9, (2, 40, 2))
    ends[1, :4] = ends[0, :4] + [[5, 0], [0, 5], [-5, 0], [0, -5]]  # along the axes
    lines = Lines(ends[0].reshape(10, 4, 2), ends[1].reshape(10, 4, 2))
    got = joseph(grid, jnp.asarray(image), lines)
    wanted = [integral(image, grid, *pair) for pair in zip(*ends, strict=True)]
    assert got.shape == (10, 4) and np.count_nonzero(wanted) > 20
    np.testing.assert_allclose(got.reshape(-1), wanted, rtol=1e-12, atol=1e-12)


def test_joseph_in_chunks_and_its_adjoint(monkeypatch):
    grid, lines = centred_grid((9, 9), 2.0), parallel_beam(6, 11, 2.0)
    image = jnp.asarray(np.random.default_rng(1).random((9, 9)))
    whole, back = jax.vjp(lambda x: joseph(grid, x, lines), image)
    y = np.random.default_rng(2).random(whole.shape)
    np.testing.assert_allclose((whole * y).sum(), (back(jnp.asarray(y))[0] * image).sum(), rtol=1e-12)
    monkeypatch.setattr(importlib.import_module("jaxem.operators.joseph"), "CHUNK", 16)
    np.testing.assert_allclose(joseph(grid, image, lines), whole, rtol=1e-13)


def test_a_disc_casts_its_chords():
    shape, bins = (81, 81), 81
    grid, lines = centred_grid(shape, 0.5), parallel_beam(5, bins, 0.5)
    at = np.asarray(grid.origin)[0] + 0.5 * np.arange(81)
    disc = (at[:, None] ** 2 + at**2 <= 15**2).astype(float)
    distance = (np.arange(bins) - 40) * 0.5
    chord = 2 * np.sqrt(np.maximum(15**2 - distance**2, 0))
    got = np.asarray(joseph(grid, jnp.asarray(disc), lines))
    assert got.shape == (5, bins)
    assert np.abs(got - chord).max() < 3 and np.abs(got.sum(1) / chord.sum() - 1).max() < 0.01


@pytest.mark.parametrize("kernel_shape", [(3, 3), (4, 5)])
def test_convolve_is_the_valid_part(kernel_shape):
    rng = np.random.default_rng(3)
    image, kernel = rng.random((12, 10)), rng.random(kernel_shape)
    got, back = jax.vjp(lambda x: convolve(jnp.asarray(kernel), x), jnp.asarray(image))
    np.testing.assert_allclose(got, signal.convolve(image, kernel, "valid"), rtol=1e-12)
    y = rng.random(got.shape)
    np.testing.assert_allclose(back(jnp.asarray(y))[0], signal.correlate(y, kernel, "full"), rtol=1e-11)


# --- one small scan, as a matrix, as rows of an operator and as one datum -----------------------
SHAPE = (6, 6)
GRID, LINES = centred_grid(SHAPE), parallel_beam(8, 9)


def scan(operands, image):
    grid, lines = operands
    return joseph(grid, image, lines)


def problem(strength=None, masked=True):
    rng = np.random.default_rng(4)
    unit = jnp.eye(36).reshape(36, *SHAPE)
    matrix = np.asarray(jax.vmap(lambda x: scan((GRID, LINES), x))(unit)).reshape(36, 72).T
    truth = rng.gamma(2.0, 3.0, SHAPE)
    attenuation, background = rng.uniform(0.3, 1, (8, 9)), rng.uniform(0, 2, (8, 9))
    y = rng.poisson(attenuation * (matrix @ truth.reshape(-1)).reshape(8, 9) + background).astype(float)
    mask = rng.random((8, 9)) < 0.8 if masked else np.ones((8, 9), bool)
    rows = {"y": y, "attenuation": attenuation, "background": background, "mask": mask}
    one = {name: x[None] for name, x in rows.items()}
    prior = None if strength is None else jaxem.Smoothness(strength)
    views = jaxem.Superposition(joseph, SHAPE, GRID, prior=prior), {**rows, "row": LINES}
    whole = jaxem.Superposition(scan, SHAPE, (GRID, LINES), prior=prior), one
    return matrix * attenuation.reshape(-1, 1), rows, views, whole


def mlem(a, y, b, x, n_steps):
    for _ in range(n_steps):
        x = x * (a.T @ (y / (a @ x + b))) / a.sum(0)
    return x


@pytest.mark.published
def test_views_as_rows_and_one_datum_are_the_matrix():
    a, rows, views, whole = problem()
    on = rows["mask"].reshape(-1)
    wanted = mlem(a[on], rows["y"].reshape(-1)[on], rows["background"].reshape(-1)[on], np.ones(36), 6)
    settings = {"init": {"rate": np.ones(SHAPE)}, "max_steps": 6, "stop": jaxem.Stop(None)}
    one = whole[0].with_sensitivity(whole[1])
    for model, data in (views, whole, (one, whole[1])):
        result = jaxem.fit(model, data, **settings)
        np.testing.assert_allclose(result.params["rate"].reshape(-1), wanted, rtol=1e-10)
        assert (np.diff(result.history) > 0).all()
    flat = {"y": rows["y"].reshape(-1), "row": a, "background": rows["background"].reshape(-1), "mask": on}
    matrix = jaxem.fit(jaxem.Superposition(), flat, **settings | {"init": {"rate": np.ones(36)}})
    np.testing.assert_allclose(matrix.params["rate"], wanted, rtol=1e-10)
    np.testing.assert_allclose(matrix.loglik, jaxem.fit(*views, **settings).loglik, rtol=1e-12)
    mean = np.asarray(views[0].mean({"rate": matrix.params["rate"].reshape(SHAPE)}, views[1]))
    np.testing.assert_allclose(mean.reshape(-1), a @ wanted + flat["background"], rtol=1e-10)


def test_what_masked_bins_hold_changes_nothing():
    _, rows, views, whole = problem(0.1)
    hidden = ~rows["mask"]
    for model, data in (views, whole):
        spoilt = dict(data)
        for name, value in (("y", np.nan), ("background", -7.0), ("attenuation", np.inf)):
            spoilt[name] = np.where(data["mask"], data[name], value)
        settings = {"max_steps": 5, "stop": jaxem.Stop(None)}
        clean, result = jaxem.fit(model, data, **settings), jaxem.fit(model, spoilt, **settings)
        np.testing.assert_array_equal(result.params["rate"], clean.params["rate"])
        assert result.loglik == clean.loglik
    inside = jax.jit(lambda d: jaxem.fit(model, d, **settings))(jax.tree.map(jnp.asarray, spoilt))
    np.testing.assert_allclose(inside.params["rate"], clean.params["rate"], rtol=1e-10)
    gaps = {name: x for name, x in views[1].items() if name != "mask"}
    gaps["y"] = np.where(hidden, np.nan, gaps["y"])
    np.testing.assert_array_equal(
        jaxem.fit(views[0], gaps, **settings).params["rate"], jaxem.fit(*views, **settings).params["rate"]
    )


def test_map_reaches_the_maximum_of_scipy():
    a, rows, views, _ = problem(0.3, masked=False)
    y, b = rows["y"].reshape(-1), rows["background"].reshape(-1)

    def loss(x):
        mean, image = a @ x + b, x.reshape(SHAPE)
        ups = [np.diff(image, axis=axis) for axis in (0, 1)]
        rough = np.zeros(SHAPE)
        rough[1:] += ups[0]
        rough[:-1] -= ups[0]
        rough[:, 1:] += ups[1]
        rough[:, :-1] -= ups[1]
        value = (mean - y * np.log(mean)).sum() + 0.15 * sum((u**2).sum() for u in ups)
        return value, a.T @ (1 - y / mean) + 0.3 * rough.reshape(-1)

    best = optimize.minimize(
        loss,
        np.ones(36),
        jac=True,
        bounds=[(1e-12, None)] * 36,
        method="L-BFGS-B",
        options={"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-9},
    )
    result = jaxem.fit(*views, stop=jaxem.Stop(1e-13), max_steps=20_000)
    assert result.converged and (np.diff(result.history) > -1e-9).all()
    np.testing.assert_allclose(loss(np.asarray(result.params["rate"]).reshape(-1))[0], best.fun, rtol=1e-9)
    np.testing.assert_allclose(result.params["rate"].reshape(-1), best.x, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(result.objective - result.loglik, views[0].prior.log_density(result.params["rate"]))


def test_map_of_no_strength_is_mlem_and_zeros_stay():
    _, _, views, _ = problem(0.0)
    start = np.ones(SHAPE)
    start[2, 3] = 0
    settings = {"init": {"rate": start}, "max_steps": 4, "stop": jaxem.Stop(None)}
    flat = jaxem.fit(*views, **settings)
    plain = jaxem.fit(jaxem.Superposition(joseph, SHAPE, GRID), views[1], **settings)
    np.testing.assert_allclose(flat.params["rate"], plain.params["rate"], rtol=1e-12)
    smooth = jaxem.fit(jaxem.Superposition(joseph, SHAPE, GRID, prior=jaxem.Smoothness(1.0)), views[1], **settings)
    assert smooth.params["rate"][2, 3] == 0 and np.isfinite(smooth.objective)


def test_smoothness_counts_neighbours():
    x = jnp.asarray(np.random.default_rng(5).random((3, 4)))
    prior = jaxem.Smoothness(2.0)
    pairs = [(x[1:] - x[:-1]) ** 2, (x[:, 1:] - x[:, :-1]) ** 2]
    np.testing.assert_allclose(prior.log_density(x), -sum(p.sum() for p in pairs))
    np.testing.assert_allclose(prior.curvature(x)[0], [8, 12, 12, 8])
    # Twice the diagonal of minus the Hessian.
    hessian = jax.hessian(prior.log_density)(x).reshape(12, 12)
    np.testing.assert_allclose(prior.curvature(x).reshape(-1), -2 * np.diagonal(hessian))


@pytest.mark.published  # takes longer than a default test may
def test_accelerated_weighted_and_sampled():
    _, _, views, whole = problem(masked=False)
    plain = jaxem.fit(*views, stop=jaxem.Stop(1e-10))
    fast = jaxem.fit(*views, stop=jaxem.Stop(1e-10), algorithm=jaxem.Squarem())
    assert fast.n_steps < plain.n_steps / 2 and fast.loglik >= plain.loglik - 1e-3
    # A view of weight zero is absent, of weight two there twice.
    model, data = views
    index = np.array([0, 1, 2, 3, 4, 5, 5])
    weight = np.array([1.0, 1, 1, 1, 1, 2, 0, 0])
    taken = jax.tree.map(lambda x: np.asarray(x)[index], data)
    settings = {"max_steps": 5, "stop": jaxem.Stop(None)}
    weighted = jaxem.fit(model, data, weight=weight, **settings)
    np.testing.assert_allclose(weighted.params["rate"], jaxem.fit(model, taken, **settings).params["rate"], rtol=1e-10)
    sampled = model.sample_like(jax.random.key(0), plain.params, data)
    assert sampled["y"].shape == (8, 9) and set(sampled) == set(data) - {"mask"}
    assert jaxem.fit(model, sampled, max_steps=3).n_steps == 3
    again = whole[0].sample(jax.random.key(0), plain.params, 2000)["y"]
    wanted = scan((GRID, LINES), plain.params["rate"])
    np.testing.assert_allclose(again.mean(0), wanted, atol=5 * np.sqrt(np.asarray(wanted).max() / 2000))


def test_bad_input():
    _, rows, (model, data), _ = problem()
    for change, message in (
        ({"mask": np.zeros((8, 9), bool)}, "at least one bin"),
        ({"attenuation": np.ones(9)}, r"shape of y, \(8, 9\)"),
        ({"attenuation": -rows["attenuation"]}, "attenuation.* must be non-negative"),
        ({"dead_time": rows["y"]}, "dict of"),
        ({"row": Lines(LINES.start[:3], LINES.end[:3])}, "lead with N=8"),
        ({"row": Lines(LINES.start[:, :5], LINES.end[:, :5])}, r"for these rows, \(8, 5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            jaxem.fit(model, {**data, **change})
    with pytest.raises(ValueError, match="one indivisible datum; got 8 rows"):
        model.with_sensitivity(data)
    with pytest.raises(ValueError, match="sensitivity must be None"):
        jaxem.fit(jaxem.Superposition(joseph, SHAPE, GRID, jnp.ones(SHAPE)), data)
    with pytest.raises(NotImplementedError, match="sample_like"):
        jaxem.Superposition().sample(jax.random.key(0), {"rate": jnp.ones(3)}, 2)
