"""Results on disk: back to the last bit, or one error; nothing pickled, no code run."""

import json

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


MODELS = [
    jaxem.GaussianMixture(2),
    jaxem.Mixture(3, jaxem.Gaussian(covariance="diag", floor=1e-4), jaxem.Dirichlet(2.0)),
    jaxem.HMM(2, jaxem.Poisson(), jaxem.Transition(np.eye(2, dtype=bool), prior=jaxem.Dirichlet(jnp.ones((2, 2))))),
    jaxem.Mixture(2, jaxem.Product((jaxem.Poisson(), jaxem.Categorical(3)), ((0,), (1,)))),
    jaxem.LDA(3),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_a_result_comes_back_whole(tmp_path, model):
    params = {"weights": jnp.array([0.25, 0.75]), "components": {"half": jnp.ones((2, 3), jnp.bfloat16), "n": np.arange(2)}}
    result = made(model, params, local=jnp.arange(4.0))
    jaxem.save(tmp_path / "r.npz", result)
    assert equal(jaxem.load(tmp_path / "r.npz"), result)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as file:  # and NumPy reads it
        np.testing.assert_array_equal(file["params.weights"], [0.25, 0.75])
        assert json.loads(file["jaxem.header"].tobytes())["versions"]["jaxem"] == jaxem.__version__


def test_a_real_fit_comes_back_and_goes_on(tmp_path):
    x = clusters(60, 2, 2).astype(np.float32)
    result = jaxem.fit(jaxem.GaussianMixture(2), x, key=jax.random.key(0), max_steps=5)
    jaxem.save(tmp_path / "r.npz", result)
    back = jaxem.load(tmp_path / "r.npz")
    assert equal(back, result) and str(back) == str(result)
    np.testing.assert_array_equal(back.model.log_prob(back.params, x), result.model.log_prob(result.params, x))


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
    jaxem.save(tmp_path / "r.npz", made(MODELS[0], {"w": jnp.ones(2)}))
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


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "r.npz"
    result = made(MODELS[1], {"weights": jnp.array([0.5, 0.5]), "mean": jnp.arange(6.0).reshape(2, 3)})
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
