"""Names and colours of the pictures."""

import importlib

import pytest

pytest.importorskip("matplotlib")

from jaxem import plot


def test_public_names_are_no_modules():
    for module in ("chain", "density", "restarts", "selection", "style"):
        importlib.import_module(f"jaxem.plot.{module}")
        assert module not in plot.__all__
    assert callable(plot.mixture) and callable(plot.trace)


def test_colours_differ():
    assert len(set(plot.colors(18))) == 18 and plot.colors(2) == plot.colors(6)[:2]
