"""A fit that is watched: the progress line, the clock, the callback."""

import errno
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import clusters

import jaxem
from jaxem import Status
from jaxem.fitting import segments
from jaxem.fitting.progress import ProgressLine, clock
from jaxem.storage import archive

X = clusters(60, 2, 2).astype(np.float32)


def fit(**options):
    given = {"n_restarts": 3, "max_steps": 40, "stop": jaxem.Stop(None), **options}
    return jaxem.fit(jaxem.GaussianMixture(2, "spherical"), X, key=jax.random.key(0), **given)


def test_a_callback_sees_the_fit_rise_in_the_datas_own_units_and_stops_it(monkeypatch):
    monkeypatch.setattr(segments, "SECONDS", 0.0)
    seen = []

    def look(snapshot):
        seen.append((snapshot, snapshot.result()))
        return len(seen) == 3

    result = fit(callback=look)
    steps = [int(s.n_steps[s.best]) for s, _ in seen]
    assert len(seen) == 3 and steps == sorted(set(steps)) and 0 < steps[0] < steps[-1] == int(result.n_steps) < 40
    assert (np.asarray(result.restarts.status) == Status.INTERRUPTED).all() and not result.converged
    for snapshot, halfway in seen:
        assert (snapshot.status == Status.RUNNING).all() and snapshot.objective.shape == (3,)
        np.testing.assert_allclose(snapshot.objective, halfway.restarts.objective, rtol=1e-5)
        assert float(halfway.loglik) == pytest.approx(float(halfway.model.log_prob(halfway.params, X).sum()), rel=1e-4)
    objectives = [float(s.objective[s.best]) for s, _ in seen]
    assert objectives[-1] >= objectives[0] - 1e-3
    on = fit()
    assert int(on.n_steps) == 40 and (np.asarray(on.restarts.status) == Status.MAX_STEPS).all()


def test_a_time_limit_ends_with_the_best_so_far():
    fit()  # compiled
    begun = time.perf_counter()
    result = fit(max_seconds=0.3, max_steps=10**8)
    assert 0.25 < time.perf_counter() - begun < 30
    assert (np.asarray(result.restarts.status) == Status.INTERRUPTED).all() and np.isfinite(float(result.loglik))
    assert "INTERRUPTED" in str(result)


def test_the_progress_line_tells_how_it_stands(capfd):
    result = fit(progress=True)
    line = capfd.readouterr().err.strip()  # no terminal: the last state alone
    assert "\n" not in line and "step 40" in line and "3 max_steps" in line
    assert f"objective {float(result.objective):.1f}"[:-1] in line


def test_a_snapshot_in_one_line():
    status = np.array([Status.RUNNING, Status.CONVERGED, Status.NONFINITE])
    snapshot = jaxem.Snapshot(65.2, np.array([-3.0, -2.5, np.nan]), np.array([7, 5, 2]), status)
    assert snapshot.best == 1
    expected = "step 7   objective -2.500000 (restart 1)   1 running, 1 converged, 1 nonfinite   1:05, at most 1:00:09 left"
    assert snapshot.line(3609.9) == expected and clock(59) == "0:59"


def test_progress_without_rich_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r'progress needs rich: pip install "jaxem\[cli\]"'):
        ProgressLine()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"max_seconds": 0}, ValueError, "max_seconds must be None or a positive number; got 0"),
        ({"callback": 3}, TypeError, "callback must be a function of a Snapshot; got int"),
        ({"checkpoint": 3}, TypeError, "checkpoint must be a jaxem.Checkpoint or a path; got int"),
    ],
)
def test_wrong_options_are_named(wrong, error, message):
    with pytest.raises(error, match=message):
        fit(**wrong)


def test_a_directory_that_cannot_be_made_is_told_before_the_fit(tmp_path):
    (tmp_path / "file").write_text("")
    for checkpoint in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match="checkpoint: its directory cannot be written to"):
            jaxem.fit(jaxem.GaussianMixture(2), np.full((3, 1), np.nan), key=jax.random.key(0), checkpoint=checkpoint)


def test_a_full_disk_costs_checkpoints_and_not_the_fit(tmp_path, monkeypatch):
    whole = fit()

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(archive, "write_bytes", full)
    (tmp_path / ".jaxem-0.part").write_text("of a process that was killed")
    with pytest.warns(
        UserWarning, match=r"no checkpoint was written, and the fit goes on: .*No space left.*checkpoint-00000001"
    ):
        result = fit(checkpoint=tmp_path)
    np.testing.assert_array_equal(result.history, whole.history)
    assert not list(tmp_path.iterdir())


def test_a_watched_fit_inside_jit_is_refused():
    with pytest.raises(ValueError, match="plain call of fit"):
        jax.jit(lambda x: jaxem.fit(jaxem.GaussianMixture(2), x, key=jax.random.key(0), max_seconds=1.0))(jnp.asarray(X))
