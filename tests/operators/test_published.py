"""Emission tomography and deconvolution at full size: the figures of independent programs."""

import numpy as np
import pytest
from scipy.special import gammaln
from support import DATA

import jaxem
from jaxem.operators import Grid, Lines, convolve, joseph

pytestmark = [pytest.mark.published, pytest.mark.usefixtures("optimised")]


def scan(operands, image):
    grid, lines = operands
    return joseph(grid, image, lines)


@pytest.fixture(scope="module")
def pet():
    """Views (180, 185) of a 128 x 128 phantom, and what the figures leave out of the log-likelihood."""
    with np.load(DATA / "pet2d.npz") as file:
        raw = {name: file[name] for name in file.files}
    shape = (180, 185)
    lines = Lines(raw["st"][:, :2].reshape(*shape, 2), raw["en"][:, :2].reshape(*shape, 2))
    grid = Grid(raw["org"][:2], raw["vs"][:2])
    data = {"y": raw["y"], "attenuation": raw["att"], "background": raw["bg"]}
    data = {name: x.reshape(shape) for name, x in data.items()}
    return grid, lines, data, gammaln(raw["y"].astype(float) + 1).sum(), raw["img"]


ONES = {"rate": np.ones((128, 128), np.float32)}


def indivisible(pet, prior=None):
    grid, lines, data, _, _ = pet
    one = {name: x[None] for name, x in data.items()}
    return jaxem.Superposition(scan, (128, 128), (grid, lines), prior=prior).with_sensitivity(one), one


def test_mlem_and_map(pet):
    _, _, _, constant, truth = pet
    result = jaxem.fit(*indivisible(pet), init=ONES, max_steps=50, stop=jaxem.Stop(None))
    value = np.asarray(result.history, np.float64) + constant
    # An independent Joseph projector; voxels grazed at the border are what projectors differ in at step 1.
    np.testing.assert_allclose(value[[10, 50]], [9116885.2, 9128217.0], rtol=1e-5)
    np.testing.assert_allclose(value[1], 8632908.12, rtol=5e-4)
    assert (np.diff(value) > 0).all()
    error = np.sqrt(np.square(result.params["rate"] - truth).sum() / np.square(truth).sum())
    np.testing.assert_allclose(error, 0.188, atol=0.002)

    result = jaxem.fit(*indivisible(pet, jaxem.Smoothness(0.02)), init=ONES, max_steps=50, stop=jaxem.Stop(None))
    value = np.asarray(result.history, np.float64) + constant
    np.testing.assert_allclose(value[[10, 50]], [9116626.63, 9127774.0], rtol=1e-5)
    assert (np.diff(value) > 0).all()


def test_ordered_subsets(pet):
    grid, lines, data, constant, _ = pet
    model = jaxem.Superposition(joseph, (128, 128), grid)
    settings = {"init": ONES, "stop": jaxem.Stop(None), "algorithm": jaxem.OrderedSubsets(20)}
    result = jaxem.fit(model, {**data, "row": lines}, max_steps=2, **settings)
    value = np.asarray(result.history, np.float64) + constant
    np.testing.assert_allclose(value[1:], [9125752.3, 9127800.51], rtol=1e-5)


def test_masked_bins(pet):
    model, one = indivisible(pet)
    mask = np.random.default_rng(0).random(one["y"].shape) < 0.9
    hidden = {name: np.where(mask, x, np.nan).astype(np.float32) for name, x in one.items()}
    fits = [
        jaxem.fit(
            model.with_sensitivity({**d, "mask": mask}), {**d, "mask": mask}, init=ONES, max_steps=3, stop=jaxem.Stop(None)
        )
        for d in (one, hidden)
    ]
    np.testing.assert_array_equal(fits[0].params["rate"], fits[1].params["rate"])


def test_richardson_lucy_with_an_unknown_border():
    with np.load(DATA / "rl.npz") as file:
        seen, kernel, truth = (file[name].astype(np.float32) for name in ("obs", "psf", "cam"))
    data = {"y": seen[None]}
    shape = tuple(np.add(seen.shape, kernel.shape) - 1)
    model = jaxem.Superposition(convolve, shape, kernel).with_sensitivity(data)
    decibels, params = [], None
    for _ in range(30):
        params = jaxem.fit(model, data, init=params, max_steps=1, stop=jaxem.Stop(None)).params
        inside = np.asarray(params["rate"], np.float64)[7:-7, 7:-7]
        decibels.append(10 * np.log10(255**2 / np.square(inside - truth).mean()))
    best = int(np.argmax(decibels))
    assert decibels[best] >= 26.0 and decibels[29] >= 24.9
    # Up to the best it rises, beyond it the noise takes over.
    assert 0 < best < 29 and (np.diff(decibels[: best + 1]) > 0).all() and (np.diff(decibels[best:]) < 0).all()
