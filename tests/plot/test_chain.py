"""Pictures of the states of chains."""

import pytest

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

from jaxem import plot


def test_states_are_bands_that_tile_the_axis():
    axes = Figure().add_subplot()
    plot.states(axes, [0, 0, 1, 1, 1, 0], [10.0, 11, 12, 13, 14, 16], ["low", "high"])
    edges = [(round(p.get_x(), 6), round(p.get_x() + p.get_width(), 6)) for p in axes.patches]
    assert edges == [(9.5, 11.5), (11.5, 15.0), (15.0, 17.0)] and axes.get_xlim() == (9.5, 17.0)
    assert axes.patches[0].get_facecolor() == axes.patches[2].get_facecolor() != axes.patches[1].get_facecolor()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["low", "high"]


def test_transition_graph_draws_every_move_that_can_be():
    axes = Figure().add_subplot()
    plot.transition_graph(axes, [[0.9, 0.1, 0], [0, 0.8, 0.2], [0.001, 0, 0.999]], ["a", "b", "c"])
    assert [text.get_text() for text in axes.texts] == ["0.90", "0.10", "0.80", "0.20", "1.00", "a", "b", "c"]
    arrows = [p for p in axes.patches if type(p).__name__ == "FancyArrowPatch"]
    assert len(arrows) == 2 and arrows[1].get_linewidth() > arrows[0].get_linewidth()
