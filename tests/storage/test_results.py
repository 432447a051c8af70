"""Results on disk: back to the last bit, or one error; nothing pickled, no code run."""

import copy
import dataclasses
import errno
import json
import os
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import clusters

import jaxem
from jaxem import FileError
from jaxem.storage import archive


def made(model, params, local=None) -> jaxem.Result:
    """A result as `fit` returns it, without the fit."""
    one, count = jnp.float32(-1.25), jnp.int32(3)
    restarts = jaxem.Restarts(one[None], one[None], count[None], count[None], jnp.array([[-2.0, jnp.nan]]))
    return jaxem.Result(params, local, one, one, jnp.int32(1), count, count, jnp.array([-2.0, -1.25]), restarts, model)


def equal(left, right) -> bool:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    pairs = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
    return all(type(a) is type(b) and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def mixture(k, components):
    return {"weights": jnp.full(k, 1 / k), "components": components}


PROBS = jnp.array([[0.25, 0.25, 0.5], [0.5, 0.0, 0.5]])
#: Models, and parameters of theirs.
MODELS = [
    (jaxem.GaussianMixture(2), mixture(2, {"mean": jnp.ones((2, 1)), "covariance": jnp.ones((2, 1, 1))})),
    (
        jaxem.Mixture(3, jaxem.Gaussian(covariance="diag", floor=1e-4), jaxem.Dirichlet(2.0)),
        mixture(3, {"mean": np.arange(6.0).reshape(3, 2), "covariance": jnp.ones((3, 2))}),
    ),
    (
        jaxem.HMM(2, jaxem.Poisson(), jaxem.Transition(np.eye(2, dtype=bool), prior=jaxem.Dirichlet(jnp.ones((2, 2))))),
        {"initial": jnp.array([0.25, 0.75]), "transition": jnp.eye(2), "emission": {"rate": jnp.array([1.0, 9.0])}},
    ),
    (
        jaxem.Mixture(2, jaxem.Product((jaxem.Poisson(), jaxem.Categorical(3)), ((0,), (1,)))),
        mixture(2, ({"rate": jnp.ones((2, 1))}, {"probs": PROBS[:, None]})),
    ),
    (jaxem.LDA(3), {"alpha": jnp.ones(3), "topics": jnp.full((3, 4), 0.25)}),
]


@pytest.mark.parametrize(("model", "params"), MODELS, ids=lambda m: type(m).__name__)
def test_a_result_comes_back_whole(tmp_path, model, params):
    result = made(model, params, local={"half": jnp.ones((2, 3), jnp.bfloat16), "n": np.arange(2)})
    jaxem.save(tmp_path / "r.npz", result)
    assert equal(jaxem.load(tmp_path / "r.npz"), result)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as file:  # and NumPy reads it
        np.testing.assert_array_equal(file["local.n"], [0, 1])
        assert json.loads(file["jaxem.header"].tobytes())["versions"]["jaxem"] == jaxem.__version__


def test_a_real_fit_comes_back_and_goes_on(tmp_path):
    x = clusters(60, 2, 2).astype(np.float32)
    result = jaxem.fit(jaxem.GaussianMixture(2), x, key=jax.random.key(0), max_steps=5)
    jaxem.save(tmp_path / "r.npz", result)
    back = jaxem.load(tmp_path / "r.npz")
    assert equal(back, result) and str(back) == str(result)
    np.testing.assert_array_equal(back.model.log_prob(back.params, x), result.model.log_prob(result.params, x))
    told = back.provenance
    assert told["options"].keys() == {"key", "max_steps"} and told["versions"]["jaxem"] == jaxem.__version__
    assert {**told, "options": None} == {**result.provenance, "options": None} and told["dtype"] == "float32"
    assert equal(jaxem.fit(back.model, x, **told["options"]), result)
    assert jax.tree.map(lambda x: x, result).provenance is None  # another tree is not what the call made


def test_options_that_no_file_holds_are_written_as_text(tmp_path):
    options = {
        "penalty": log_density,
        "stop": jaxem.Stop(1e-3),
        "tied": [("a", "b")],
        "init": {"w": jnp.ones(2)},
        "labels": [{}],
    }
    result = dataclasses.replace(made(*MODELS[0]), provenance={"backend": "cpu", "options": options})
    jaxem.save(tmp_path / "r.npz", result)
    back = jaxem.load(tmp_path / "r.npz").provenance["options"]
    assert back["penalty"].endswith(".log_density>") and back["stop"] == jaxem.Stop(1e-3) and back["tied"] == [("a", "b")]
    np.testing.assert_array_equal(back["init"]["w"], [1, 1])


def log_density(params, x):
    return -((x - params["m"]) ** 2)


def test_a_model_of_functions_must_be_given(tmp_path):
    model = jaxem.log_joint(log_density, init={"m": jnp.zeros(())})
    result = made(model, {"m": jnp.ones(())})
    jaxem.save(tmp_path / "r.npz", result)
    with pytest.raises(ValueError, match=r"load\(path, model=...\)"):
        jaxem.load(tmp_path / "r.npz")
    assert equal(jaxem.load(tmp_path / "r.npz", model=model), result)


def test_only_results_are_saved(tmp_path):
    with pytest.raises(TypeError, match=r"jaxem.Result; got dict"):
        jaxem.save(tmp_path / "r.npz", {"params": 1})
    with pytest.raises(TypeError, match="only arrays"):
        archive.write(tmp_path / "o.npz", "x", {}, {"o": np.array([{}])})
    assert not list(tmp_path.iterdir())


def test_foreign_files_give_one_error(tmp_path):
    path = tmp_path / "f.npz"
    for content in (b"", b"PK\x05\x06" + bytes(18), b"not a zip file", bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"f\.npz"):
            jaxem.load(path)
    np.savez(path, a=np.ones(3))
    with pytest.raises(FileError, match="no file of jaxem's"):
        jaxem.load(path)
    np.savez(path, **{"jaxem.format": np.array([{}], object)}, allow_pickle=True)
    with pytest.raises(FileError):
        jaxem.load(path)
    with pytest.raises(FileError, match="no such file"):
        jaxem.load(tmp_path / "none.npz")
    archive.write(path, "checkpoint", {}, {})
    with pytest.raises(FileError, match="holds a checkpoint, not a result"):
        jaxem.load(path)


def test_a_newer_file_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "FORMAT", archive.FORMAT + 1)
    jaxem.save(tmp_path / "r.npz", made(*MODELS[0]))
    monkeypatch.undo()
    with pytest.raises(FileError, match="newer jaxem"):
        jaxem.load(tmp_path / "r.npz")


def test_loading_builds_jaxems_own_classes_only(tmp_path):
    """A forged file, digest and all, names another class: refused, and nothing of it is called."""
    path = tmp_path / "r.npz"
    for name in ("os.system", "jaxem.models.mixture.Nothing", "builtins.eval"):
        forged = {"struct": name, "fields": {"command": "true"}}
        archive.write(path, "result", {"result": {"dict": {}}, "model": forged}, {})
        with pytest.raises(FileError, match="put together"):
            jaxem.load(path)


R = made(*MODELS[0]).restarts
FORGED = {
    "a status that there is not": ({"status": jnp.int32(999)}, "status must be of 0 RUNNING"),
    "a stop that there is not": ({"stop": jnp.int32(6)}, "stop must be of 0 NONE"),
    "text": ({"status": "done"}, "status must be numbers; got <U4"),
    "NaN": ({"loglik": jnp.float32(np.nan)}, "no number"),
    "a string for a model": ({"model": "GaussianMixture"}, "model is something else"),
    "a family for a model": ({"model": jaxem.Gaussian()}, "model is something else"),
    "an array cut off": ({"restarts": dataclasses.replace(R, status=jnp.zeros(0, jnp.int32))}, r"status has shape \(0,\)"),
    "history of another rank": ({"history": jnp.ones((2, 2))}, r"history has shape \(2, 2\)"),
    "parameters cut off": ({"params": {**MODELS[0][1], "weights": jnp.array([0.5])}}, "params: weights must be non-negative"),
    "parameters turned": (
        {"params": mixture(2, {"mean": jnp.ones((1, 2)), "covariance": jnp.ones((2, 1, 1))})},
        "params are not those of its Mixture",
    ),
    "parameters exchanged": (
        {"params": mixture(2, {"mean": jnp.ones((2, 1)), "covariance": -jnp.ones((2, 1, 1))})},
        "params: components.covariance must be symmetric positive definite",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_what_no_fit_returns_is_refused(tmp_path, name):
    changes, message = FORGED[name]
    jaxem.save(tmp_path / "f.npz", dataclasses.replace(made(*MODELS[0]), **changes))
    with pytest.raises(FileError, match=rf"f\.npz: .*{message}"):
        jaxem.load(tmp_path / "f.npz")


def test_a_file_that_lacks_something_says_what(tmp_path):
    path, result = tmp_path / "r.npz", made(*MODELS[0])
    jaxem.save(path, result)
    whole, arrays = archive.read(path, "result")

    def changed(change, without=()):
        about = copy.deepcopy(whole)
        change(about)
        archive.write(path, "result", about, {name: x for name, x in arrays.items() if name not in without})
        return jaxem.load(path)

    for change, without, message in (
        (lambda about: about["result"]["dict"].pop("history"), (), "Result lacks history"),
        (lambda about: about["result"]["dict"].update(more=1), (), "this jaxem's Result has no more"),
        (lambda about: about["model"]["fields"].pop("n_components"), (), "Mixture lacks n_components"),
        (lambda about: about.pop("model"), (), "lacks model"),
        (lambda about: None, ("params.weights",), "lacks the array params.weights"),
    ):
        with pytest.raises(FileError, match=rf"r\.npz: .*{message}"):
            changed(change, without)
    with pytest.warns(UserWarning, match=r"r\.npz: lacks provenance"):
        assert changed(lambda about: about.pop("provenance")).provenance is None


def test_an_archive_takes_no_more_memory_than_its_size(tmp_path):
    path, claim = tmp_path / "r.npz", {"descr": "|u1", "fortran_order": False, "shape": (1 << 32,)}
    jaxem.save(path, made(*MODELS[0]))
    sound = path.read_bytes()
    for compression, zeros in ((zipfile.ZIP_DEFLATED, 1 << 26), (zipfile.ZIP_STORED, 10)):
        path.write_bytes(sound)
        with zipfile.ZipFile(path, "a", compression) as file, file.open("params.more.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, claim)
            member.write(bytes(zeros))
        tracemalloc.start()
        with pytest.raises(FileError, match=r"r\.npz"):
            jaxem.load(path)
        assert tracemalloc.get_traced_memory()[1] < 1e6
        tracemalloc.stop()


def test_many_threads_write_and_read_one_file(tmp_path):
    """And through a link, which stays."""
    target, link = tmp_path / "target.npz", tmp_path / "link.npz"
    link.symlink_to(target)
    result = made(*MODELS[0])
    jaxem.save(link, result)
    target.chmod(0o640)
    with ThreadPoolExecutor(8) as pool:
        back = list(pool.map(lambda i: jaxem.load(target) if i % 2 else jaxem.save(link, result), range(64)))
    assert all(equal(b, result) for b in back[1::2])
    assert link.is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["link.npz", "target.npz"]
    assert target.stat().st_mode & 0o777 == 0o640


def test_what_is_no_file_is_refused_and_a_missing_folder_named(tmp_path):
    result = made(*MODELS[0])
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull), tmp_path):
        with pytest.raises(ValueError, match="must be a file, or a name that is free"):
            jaxem.save(path, result)
        with pytest.raises(FileError):  # and a pipe does not keep the reader waiting
            jaxem.load(path)
    with pytest.raises(FileNotFoundError, match=r"none/r\.npz: there is no folder .*none"):
        jaxem.save(tmp_path / "none" / "r.npz", result)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"] and not Path(os.devnull).is_file()


def test_a_full_disk_leaves_the_old_file_and_names_the_new_one(tmp_path, monkeypatch):
    path, result = tmp_path / "r.npz", made(*MODELS[0])
    jaxem.save(path, result)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=r"No space left on device: '.*/r\.npz'"):
        jaxem.save(path, made(*MODELS[1]))
    assert equal(jaxem.load(path), result) and [p.name for p in tmp_path.iterdir()] == ["r.npz"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "r.npz"
    result = made(*MODELS[1])
    jaxem.save(path, result)
    return path, path.read_bytes(), result


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_is_found(written, data):
    """Flipped bits and truncation: the very same result, or the one error."""
    path, content, result = written
    damaged = bytearray(content)
    for place in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=0, max_size=3)):
        damaged[place // 8] ^= 1 << place % 8
    target = path.with_name("damaged.npz")
    target.write_bytes(bytes(damaged[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]))
    try:
        back = jaxem.load(target)
    except FileError:
        return
    assert equal(back, result)
