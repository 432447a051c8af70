"""The picture of a choice: of any models."""

import dataclasses
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
        return jaxem.select(models, data, key=jax.random.key(0), max_steps=20)


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


def test_models_that_are_no_mixtures_are_drawn_by_their_curves():
    x = counts(40)
    chains = selected([jaxem.HMM(k, jaxem.Poisson()) for k in (1, 2)], jaxem.sequences([x]))
    others = [dataclasses.replace(c, model=jaxem.HMM(c.model.n_states, jaxem.NegativeBinomial())) for c in chains.candidates]
    chains = dataclasses.replace(chains, candidates=(*chains.candidates, *others))
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


def test_a_mixture_over_no_array_is_drawn_by_its_curves():
    y = {"y": counts(20), "inputs": np.ones((20, 1))}
    assert len(drawn(y, selected([jaxem.Mixture(1, jaxem.LinearRegression())], y))) == 3


def test_counts_and_categories_are_drawn_over_their_data():
    x = counts()
    density, criterion, _, _ = drawn(x, selected([jaxem.Mixture(k, jaxem.Poisson()) for k in (1, 2)], x))
    assert density.get_title(loc="left") == "2 components, Poisson" and criterion.get_xlabel() == "number of components"
    codes = np.minimum(x[:, None] // [4, 8], 1)
    assert len(drawn(codes, selected([jaxem.Mixture(2, jaxem.Categorical(2))], codes))) == 4
