"""The picture of a choice: of any models."""

import io

import jax
import numpy as np
import pytest
from support import clusters

import jaxem

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

from jaxem import plot


@pytest.mark.parametrize("d", [1, pytest.param(2, marks=pytest.mark.published), 3])
def test_the_whole_figure(d):
    with jax.enable_x64(True):
        x = clusters(50, d, 2)
        kinds = ("tied", "diag") if d == 2 else ("diag",)
        models = [jaxem.GaussianMixture(k, kind) for k in (1, 2) for kind in kinds]
        selection = jaxem.select(models, x, key=jax.random.key(0), n_restarts=2)
        figure = plot.selection_figure(x, selection, title="Data")
    figure.savefig(io.BytesIO(), format="png")
    assert len(figure.axes) == 4


def selected(models, data):
    with jax.enable_x64(True):
        return jaxem.select(models, data, key=jax.random.key(0), n_restarts=2, max_steps=20)


def drawn(data, selection):
    with jax.enable_x64(True):
        figure = plot.selection_figure(data, selection, title="Data")
    figure.savefig(io.BytesIO(), format="png")
    return figure.axes


def curves(selection):
    axes = Figure().add_subplot()
    plot.criterion_curves(axes, selection)
    return axes, {line.get_label(): line.get_xydata() for line in axes.lines}


def counts(n=60):
    return np.random.default_rng(0).poisson(np.where(np.arange(n) % 2, 2, 12)).astype(float)


def test_counts_are_bars_under_probabilities():
    x = counts()
    selection = selected([jaxem.Mixture(k, jaxem.Poisson()) for k in (1, 2)], x)
    density, criterion, _, _ = drawn(x, selection)
    assert density.get_title(loc="left") == "2 components, Poisson" and density.get_ylabel() == "probability"
    *components, total = density.lines
    np.testing.assert_array_equal(total.get_xdata(), np.arange(x.min(), x.max() + 1))
    params, model = selection.best.result.params, selection.best.model
    with jax.enable_x64(True):
        np.testing.assert_allclose(total.get_ydata(), np.exp(model.log_prob(params, total.get_xdata())), rtol=1e-10)
    np.testing.assert_allclose(sum(line.get_ydata() for line in components), total.get_ydata(), rtol=1e-12)
    bars = sum(p.get_height() * p.get_width() for p in density.patches)
    assert bars == pytest.approx(1) and all(p.get_width() == pytest.approx(1) for p in density.patches)
    assert criterion.get_xlabel() == "number of components"


@pytest.mark.parametrize("family", [jaxem.Bernoulli(), jaxem.Categorical(3)])
def test_latent_classes_are_a_table_of_shares(family):
    x = (np.random.default_rng(0).random((60, 4)) < np.where(np.arange(60) % 2, 0.15, 0.85)[:, None]).astype(float)
    selection = selected([jaxem.Mixture(2, family)], x)
    density = drawn(x, selection)[0]
    probs = np.asarray(selection.best.result.params["components"]["probs"]).reshape(2, -1)
    assert [text.get_text() for text in density.texts] == [f"{p:.2f}" for p in probs.ravel()]
    assert [text.get_text() for text in density.get_xticklabels()] == [f"column {j + 1}" for j in range(4)]


def test_models_that_are_no_mixtures_are_drawn_by_their_curves():
    x = counts(40)
    chains = selected(
        [jaxem.HMM(k, e) for e in (jaxem.Poisson(), jaxem.NegativeBinomial()) for k in (1, 2)], jaxem.sequences([x])
    )
    assert len(drawn(jaxem.sequences([x]), chains)) == 3
    axes, lines = curves(chains)
    assert axes.get_xlabel() == "number of states" and set(lines) == {"Poisson", "NegativeBinomial"}
    assert all(list(xy[:, 0]) == [1, 2] for xy in lines.values())
    rows = clusters(60, 4, 2)
    factors = selected([jaxem.FactorAnalysis(q) for q in (1, 2)], rows)
    criterion, _, _ = drawn(rows, factors)
    assert criterion.get_xlabel() == "number of factors"


def test_models_of_several_kinds_are_compared_by_their_parameters():
    x = clusters(60, 2, 2)
    selection = selected([jaxem.MultivariateNormal(), jaxem.GaussianMixture(1, "diag"), jaxem.GaussianMixture(2, "diag")], x)
    axes, lines = curves(selection)
    assert axes.get_xlabel() == "number of free parameters"
    assert sorted(float(v) for xy in lines.values() for v in xy[:, 0]) == [4, 5, 9]


def test_mixture_says_what_it_does_not_draw():
    y = {"y": counts(20), "inputs": np.ones((20, 1))}
    selection = selected([jaxem.Mixture(1, jaxem.LinearRegression())], y)
    assert len(drawn(y, selection)) == 3
    with pytest.raises(TypeError, match="Mixture over an array"), jax.enable_x64(True):
        plot.mixture(Figure().add_subplot(), y, selection.best.result)
