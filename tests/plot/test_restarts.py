"""Every restart is drawn once, and nothing breaks the panels."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from support import clusters

import jaxem
from jaxem import Status

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.collections import LineCollection  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from jaxem.plot import restarts as plot  # noqa: E402


@pytest.fixture(scope="module")
def result():
    with jax.enable_x64(True):
        return jaxem.fit(jaxem.GaussianMixture(4), clusters(60, 2, 4, spread=1), key=jax.random.key(0), n_restarts=12)


def panel(draw, result):
    figure = Figure()
    axes = figure.add_subplot()
    draw(axes, result)
    figure.savefig(io.BytesIO(), format="png")
    return axes


def bundles(axes):
    return {c.get_label(): c for c in axes.collections if isinstance(c, LineCollection)}


def with_restarts(result, **changes):
    return dataclasses.replace(result, restarts=dataclasses.replace(result.restarts, **changes))


def test_every_restart_is_drawn_once(result):
    axes = panel(plot.trace, result)
    drawn = [path for c in bundles(axes).values() for path in c.get_segments()]
    assert len(drawn) == 11
    winner = axes.lines[0].get_xydata()
    history = np.asarray(result.history)
    np.testing.assert_array_equal(winner, np.stack([1 + np.arange(len(history)), history], 1))
    ends = sorted([*(path[-1, 1] for path in drawn), winner[-1, 1]])
    np.testing.assert_allclose(ends, np.sort(result.restarts.objective), rtol=1e-12)
    assert axes.lines[0].get_linewidth() > 2 * max(c.get_linewidth()[0] for c in bundles(axes).values())
    assert all(c.get_alpha() < 1 for c in bundles(axes).values())


def test_degenerate_restarts_have_another_dash(result):
    others = np.arange(12) != plot.winning_restart(result)
    status = np.where(others & (np.arange(12) % 2 == 0), Status.DEGENERATE, result.restarts.status)
    made = bundles(panel(plot.trace, with_restarts(result, status=status)))
    failed = made.pop("degenerate or failed")
    assert len(failed.get_segments()) == (status == Status.DEGENERATE).sum()
    assert failed.get_linestyle()[0][1] is not None
    assert all(c.get_linestyle()[0][1] is None for c in made.values())


def test_a_step_that_went_wrong_is_not_drawn(result):
    winner = plot.winning_restart(result)
    restart = (winner + 1) % 12
    status, history = np.array(result.restarts.status), np.array(result.restarts.history)
    n_steps = np.array(result.restarts.n_steps)
    status[restart], n_steps[restart], history[restart] = Status.NONFINITE, 0, np.nan  # the very start was no good
    paths = plot.paths_of(with_restarts(result, status=status, n_steps=n_steps, history=history))
    assert len(paths[restart]) == 0 and len(paths[winner]) == int(result.n_steps) + 1
    panel(plot.trace, with_restarts(result, status=status, n_steps=n_steps, history=history))


def test_long_runs_show_their_last_thousand():
    with jax.enable_x64(True):
        x = clusters(40, 1, 2)
        never = jaxem.Stop(loglik_rtol=None)
        result = jaxem.fit(
            jaxem.GaussianMixture(2, "spherical"), x, key=jax.random.key(0), n_restarts=2, max_steps=1_500, stop=never
        )
    (path, _) = plot.paths_of(result)
    assert path[0, 0] == 502 and path[-1, 0] == 1_501 and path[-1, 1] == float(result.restarts.objective[0])
    assert "the last 1,000 of each" in panel(plot.trace, result).get_xlabel()


@pytest.mark.parametrize("status", [Status.DEGENERATE, Status.MAX_STEPS])
def test_all_restarts_alike(result, status):
    alike = dataclasses.replace(result, status=np.int32(status))
    alike = with_restarts(alike, status=np.full(12, status))
    panel(plot.trace, alike)
    assert "12 at the best" in panel(plot.finals, alike).get_title()
