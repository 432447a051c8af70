"""Files of jaxem 0.1.0, written before its modules moved, are read: results, a checkpoint in the middle of a fit, a stream."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.fitting import monitor
from jaxem.storage import archive

pytestmark = pytest.mark.filterwarnings("ignore:.*lacks provenance")
OLD = Path(__file__).parents[1] / "files" / "saved"
EXPECTED = json.loads((OLD / "expected.json").read_text())
CHECKPOINT, ONLINE = EXPECTED.pop("checkpoint"), EXPECTED.pop("online")
#: Models of functions, which no file holds.
GIVEN = {"blind": lambda: jaxem.Superposition(jaxem.operators.convolve, (8,), jnp.array([0.25, 0.5, 0.25]))}

#: Among them all classes; the others are variants.
ONE_OF_EACH = (
    "ancestry bernoulli categorical censored drift factors gamma grammar hmm_autoregression hmm_sticky items lda "
    "mixture_of_mixtures motif multinomial negative_binomial plsa poisson_float32 product random_intercept regimes shares "
    "states_with_inputs superposition_smooth t tree_f81_free tree_hky_gamma tree_jc von_mises"
).split()


def data_of(name):
    """An array, a dict of arrays, or sequences of either, as the names of what the file holds tell."""
    with np.load(OLD / f"data_{name}.npz") as file:
        arrays = {key: jnp.asarray(file[key]) for key in file.files}
    if "length" not in arrays:
        return arrays.get("array", arrays)
    x = {key[2:]: value for key, value in arrays.items() if key.startswith("x.")}
    return jaxem.Sequences(x or arrays["x"], arrays["length"], arrays.get("observed"))


def close(got, wanted, rtol=1e-10):
    """To `rtol` of each number, or of the largest where some cancel."""
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


def read(name):
    return jaxem.load(OLD / f"{name}.npz", model=GIVEN.get(name, lambda: None)())


def slow(name):
    """Variants are read in every run too, and evaluated where there is time to compile them."""
    return name if name in ONE_OF_EACH else pytest.param(name, marks=pytest.mark.published)


@pytest.mark.parametrize("name", [slow(name) for name in EXPECTED])
def test_a_result_means_the_same(name):
    single = name.endswith("float32")
    with jax.enable_x64(not single):
        result = read(name)
        log_prob = jax.jit(result.model.log_prob)(result.params, data_of(EXPECTED[name]["data"]))
        assert log_prob.dtype == (np.float32 if single else np.float64)
        close(log_prob, EXPECTED[name]["log_prob"], 1e-5 if single else 1e-10)


def structs(about):
    """What a header calls the classes in it."""
    inner = about.values() if isinstance(about, dict) else about if isinstance(about, list) else ()
    return set().union(*map(structs, inner), {about["struct"]} if isinstance(about, dict) and "struct" in about else ())


def test_every_file_is_read_and_written_again_by_public_names(x64, tmp_path):
    files = {path.stem: path for path in OLD.glob("*.npz") if not path.stem.startswith("data_")}
    assert set(files) == set(EXPECTED)
    old = {name: structs(archive.read(path, "result")[0]) for name, path in files.items()}
    assert set().union(*(old[name] for name in ONE_OF_EACH)) == set().union(*old.values())
    for name in files:
        result = read(name)
        jaxem.save(tmp_path / "new.npz", result)
        new = structs(archive.read(tmp_path / "new.npz", "result")[0])
        assert new == {f"jaxem.{path.split('.')[-1]}" for path in old[name]} and new <= {f"jaxem.{n}" for n in jaxem.__all__}
        back = jaxem.load(tmp_path / "new.npz", model=result.model)
        pairs = zip(jax.tree.leaves(back), jax.tree.leaves(result), strict=True)
        assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def test_a_fit_goes_on_from_a_checkpoint(x64, tmp_path):
    """It had taken five steps; the callback sees that it does not begin anew."""
    data, seen = np.asarray(data_of(CHECKPOINT["data"])), []
    rate = np.array([[2.0, 6.0, 12.0], [1.0, 4.0, 20.0]])
    starts = jaxem.init.Each({"components": {"rate": rate}, "weights": np.full((2, 3), 1 / 3)})
    shutil.copytree(OLD / "checkpoint", tmp_path / "run")
    result = jaxem.fit(
        jaxem.Mixture(3, jaxem.Poisson(jaxem.GammaPrior(2.0, 0.5))), data, init=starts, n_restarts=2, max_steps=40,
        checkpoint=tmp_path / "run", callback=lambda snapshot: seen.append(snapshot.n_steps.min()),
    )  # fmt: skip
    assert seen[0] > 5 and int(result.n_steps) == CHECKPOINT["n_steps"]
    close(result.loglik, CHECKPOINT["loglik"])


def test_another_fit_of_another_version_is_told(x64, tmp_path, monkeypatch):
    monkeypatch.setattr(monitor, "__version__", "9.0")
    shutil.copytree(OLD / "checkpoint", tmp_path / "run")
    with pytest.raises(ValueError, match=r"not the same model, .*this version: written by jaxem 0\.1\.0 .*this is jaxem 9\.0"):
        jaxem.fit(jaxem.GaussianMixture(3), np.ones((24, 1)), key=jax.random.key(0), checkpoint=tmp_path / "run")


def test_a_stream_goes_on_from_its_state(x64):
    data = data_of(ONLINE["data"])
    like = jaxem.online.init(jaxem.GaussianMixture(2), np.asarray(data), key=jax.random.key(0))
    _, state = jaxem.Checkpoint(OLD / "online").restore(like)
    assert int(state.n_steps) == 9
    for at in ("params", "averaged"):
        close(state.original.log_prob(getattr(state, at), data), ONLINE[at])
    assert int(jaxem.online.update(state, data).n_steps) == 10
