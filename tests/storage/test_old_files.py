"""Files of jaxem 0.1.0, written before its modules moved, are read: results, a checkpoint in the middle of a fit, a stream."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

OLD = Path(__file__).parents[1] / "files" / "saved"
EXPECTED = json.loads((OLD / "expected.json").read_text())
CHECKPOINT, ONLINE = EXPECTED.pop("checkpoint"), EXPECTED.pop("online")
#: Models of functions, which no file holds.
GIVEN = {"blind": lambda: jaxem.Superposition(jaxem.operators.convolve, (8,), jnp.array([0.25, 0.5, 0.25]))}


def data_of(name):
    """An array, a dict of arrays, or sequences of either, as the names of what the file holds tell."""
    with np.load(OLD / f"data_{name}.npz") as file:
        arrays = {key: jnp.asarray(file[key]) for key in file.files}
    if "length" not in arrays:
        return arrays.get("array", arrays)
    x = {key[2:]: value for key, value in arrays.items() if key.startswith("x.")}
    return jaxem.Sequences(x or arrays["x"], arrays["length"], arrays.get("observed"))


def close(got, wanted, rtol=1e-12):
    """To `rtol` of each number, or of the largest where some cancel."""
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


@pytest.mark.parametrize("name", EXPECTED)
def test_a_result_is_read_and_means_the_same(name):
    single = name.endswith("float32")
    with jax.enable_x64(not single):
        result = jaxem.load(OLD / f"{name}.npz", model=GIVEN.get(name, lambda: None)())
        log_prob = result.model.log_prob(result.params, data_of(EXPECTED[name]["data"]))
        assert log_prob.dtype == (np.float32 if single else np.float64)
        close(log_prob, EXPECTED[name]["log_prob"], 1e-5 if single else 1e-12)


def test_every_file_is_read():
    assert {path.stem for path in OLD.glob("*.npz") if not path.stem.startswith("data_")} == set(EXPECTED)


def test_a_fit_goes_on_from_a_checkpoint(x64, tmp_path):
    """It had taken five steps; the callback sees that it does not begin anew."""
    data, seen = np.asarray(data_of(CHECKPOINT["data"])), []
    rate = np.array([[2.0, 6.0, 12.0], [1.0, 4.0, 20.0]])
    starts = jaxem.init.Each({"components": {"rate": rate}, "weights": np.full((2, 3), 1 / 3)})

    def fit(**options):
        model = jaxem.Mixture(3, jaxem.Poisson(jaxem.GammaPrior(2.0, 0.5)))
        return jaxem.fit(model, data, init=starts, n_restarts=2, max_steps=40, **options)

    shutil.copytree(OLD / "checkpoint", tmp_path / "run")
    result = fit(checkpoint=tmp_path / "run", callback=lambda snapshot: seen.append(snapshot.n_steps.min()))
    assert seen[0] > 5 and int(result.n_steps) == CHECKPOINT["n_steps"]
    assert int(result.status) in (jaxem.Status.CONVERGED, jaxem.Status.MAX_STEPS)
    close(result.loglik, fit().loglik)
    close(result.loglik, CHECKPOINT["loglik"])


def test_a_stream_goes_on_from_its_state(x64):
    data = data_of(ONLINE["data"])
    like = jaxem.online.init(jaxem.GaussianMixture(2), np.asarray(data), key=jax.random.key(0))
    _, state = jaxem.Checkpoint(OLD / "online").restore(like)
    assert int(state.n_steps) == 9
    for at in ("params", "averaged"):
        close(state.original.log_prob(getattr(state, at), data), ONLINE[at])
    assert int(jaxem.online.update(state, data).n_steps) == 10
