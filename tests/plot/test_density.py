"""A mixture over its data: of Gaussians, counts, positive numbers and categories."""

import io

import jax
import numpy as np
import pytest
from support import clusters

import jaxem

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

from jaxem import plot


@pytest.fixture(autouse=True, scope="module")
def x64():
    with jax.enable_x64(True):
        yield


def panel(family, data, k=2):
    """The fit of a mixture, and its picture."""
    result = jaxem.fit(jaxem.Mixture(k, family), data, key=jax.random.key(0), max_steps=20)
    figure = Figure()
    axes = figure.add_subplot()
    plot.mixture(axes, data, result)
    figure.savefig(io.BytesIO(), format="png")
    return result, axes


def counts(n=60):
    return np.random.default_rng(0).poisson(np.where(np.arange(n) % 2, 2, 12)).astype(float)


def area(axes):
    return sum(bar.get_height() * bar.get_width() for bar in axes.patches)


@pytest.mark.parametrize("column", [False, True])
def test_counts_are_bars_under_probabilities(column):
    x = counts()
    result, axes = panel(jaxem.Poisson(), x[:, None] if column else x)
    *components, total = axes.lines
    at = total.get_xdata()
    np.testing.assert_array_equal(at, np.arange(x.min(), x.max() + 1))
    wanted = np.exp(result.model.log_prob(result.params, at[:, None] if column else at))
    np.testing.assert_allclose(total.get_ydata(), wanted, rtol=1e-10)
    np.testing.assert_allclose(sum(line.get_ydata() for line in components), wanted, rtol=1e-10)
    assert area(axes) == pytest.approx(1) and all(bar.get_width() == pytest.approx(1) for bar in axes.patches)
    assert axes.get_title(loc="left") + axes.get_title() == "2 components, Poisson" and axes.get_ylabel() == "probability"


def test_wide_counts_are_bars_of_several_numbers():
    _, axes = panel(jaxem.Poisson(), 50 * counts())
    assert area(axes) == pytest.approx(1) and len(axes.patches) <= 61


@pytest.mark.parametrize("family", [jaxem.Gaussian(), jaxem.Gamma()])
def test_densities_of_real_numbers_stay_in_their_support(family):
    x = 1e-3 + counts() if isinstance(family, jaxem.Gamma) else counts()[:, None]
    _, axes = panel(family, x)
    total = axes.lines[-1]
    assert axes.get_ylabel() == "density" and np.isfinite(total.get_ydata()).all()
    assert (total.get_xdata().min() > 0) == isinstance(family, jaxem.Gamma)
    assert np.trapezoid(total.get_ydata(), total.get_xdata()) == pytest.approx(1, abs=0.05)


def test_only_gaussians_have_ellipses():
    x = np.round(np.abs(clusters(40, 3, 2)))
    assert len(panel(jaxem.Gaussian(covariance="diag"), x)[1].lines) == 4
    _, axes = panel(jaxem.Poisson(), x)
    assert not axes.lines and len(axes.collections) == 3  # the rows, and two crosses


def test_rows_with_gaps_are_left_out():
    x = clusters(40, 2, 2)
    x[3, 1] = np.nan
    _, axes = panel(jaxem.Gaussian(missing="marginal"), x)
    assert len(axes.collections[0].get_offsets()) == 39


@pytest.mark.parametrize("family", [jaxem.Bernoulli(), jaxem.Categorical(3)])
def test_latent_classes_are_a_table_of_shares(family):
    x = (np.random.default_rng(0).random((60, 4)) < np.where(np.arange(60) % 2, 0.15, 0.85)[:, None]).astype(float)
    result, axes = panel(family, x)
    shares = np.asarray(result.params["components"]["probs"]).ravel()
    assert [text.get_text() for text in axes.texts] == [f"{share:.2f}" for share in shares]
    assert [text.get_text() for text in axes.get_xticklabels()] == [f"column {j + 1}" for j in range(4)]


def test_what_is_not_drawn_is_said():
    y = {"y": counts(20), "inputs": np.ones((20, 1))}
    with pytest.raises(TypeError, match="Mixture over an array"):
        panel(jaxem.LinearRegression(), y, 1)
