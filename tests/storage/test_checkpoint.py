"""Runs that survive: what is on disk is checked to the last bit, and a resumed fit ends with the bits of one run through."""

import functools
import os
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import support
from kill_and_resume import fit, killed_and_resumed, same

import jaxem
from jaxem import Checkpoint, FileError, Status
from jaxem.fitting import segments
from jaxem.storage.fingerprint import fingerprint

STATE = {"x": jnp.arange(4.0), "n": jnp.int32(7), "key": jax.random.key(5), "opt": optax.adam(0.1).init({"w": jnp.ones(2)})}


def equal(left, right) -> bool:
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(plain(a), plain(b)) for a, b in pairs)


# --- files ---------------------------------------------------------------------------------------
def test_a_state_comes_back_and_the_last_few_are_kept(tmp_path):
    """Any pytree: optimizer states, random keys; and the key goes on as it would have."""
    checkpoint = Checkpoint(tmp_path / "new" / "run", keep=2)
    assert checkpoint.restore(STATE) is None
    for step in range(4):
        checkpoint.save({**STATE, "n": jnp.int32(step)}, {"pass": step})
    assert [p.name for p in checkpoint.paths()] == ["checkpoint-00000003.npz", "checkpoint-00000004.npz"]
    assert len(os.listdir(checkpoint.directory)) == 2  # nothing half-written
    about, state = checkpoint.restore(jax.eval_shape(lambda: STATE))
    assert about["pass"] == 3 and equal(state, {**STATE, "n": jnp.int32(3)})
    assert jax.tree.structure(state) == jax.tree.structure(STATE)
    assert jax.random.normal(state["key"]) == jax.random.normal(STATE["key"])


def test_a_flipped_byte_falls_back_to_the_one_before(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(STATE, {"pass": 1})
    path = checkpoint.save({**STATE, "x": jnp.ones(4)}, {"pass": 2})
    content = bytearray(path.read_bytes())
    content[content.index(np.ones(4, np.float32).tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="going back to the checkpoint before"):
        about, state = checkpoint.restore(STATE)
    assert about["pass"] == 1 and equal(state, STATE)
    checkpoint.paths()[0].write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(FileError, match="checkpoint-00000001"):
        checkpoint.restore(STATE)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({**STATE, "x": jnp.arange(4)}, r"x must be int32\[4\]; got float32\[4\]"),
        ({**STATE, "x": jnp.ones(5)}, r"x must be float32\[5\]; got float32\[4\]"),
        ({**STATE, "opt": optax.sgd(0.1).init({"w": jnp.ones(2)})}, "another structure.*opt"),
        ({**STATE, "y": jnp.ones(())}, "another structure.*y"),
    ],
)
def test_another_structure_shape_or_dtype_is_refused(tmp_path, other, message):
    Checkpoint(tmp_path).save(STATE)
    with pytest.raises(FileError, match=message):
        Checkpoint(tmp_path).restore(other)


def test_a_write_that_breaks_off_leaves_the_old_files(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save(STATE)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(STATE)
    assert os.listdir(tmp_path) == ["checkpoint-00000001.npz"]


@pytest.mark.parametrize("wrong", [{"every_seconds": -1}, {"keep": 0}, {"keep": True}, {"backend": "pickle"}])
def test_wrong_settings_are_named(tmp_path, wrong):
    with pytest.raises(ValueError, match=f"Checkpoint: {next(iter(wrong))}"):
        Checkpoint(tmp_path, **wrong)


def test_orbax_missing_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"jaxem\[checkpoint\]"):
        Checkpoint(tmp_path, backend="orbax")


@pytest.mark.published
def test_orbax_keeps_sharded_state_and_our_digest_sees_what_it_does_not(tmp_path):
    """Eight devices hold a part each; a flipped byte is found, and the one before is taken."""
    code = """
import sys, warnings, jax, jax.numpy as jnp, numpy as np, pathlib, jaxem
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.make_mesh((8,), ("data",))
sharding = NamedSharding(mesh, PartitionSpec("data"))
state = {"local": jax.device_put(np.arange(4096, dtype=np.float32), sharding), "key": jax.random.key(1), "n": jnp.int32(3)}
checkpoint = jaxem.Checkpoint(sys.argv[1], backend="orbax", keep=2)
checkpoint.save(state, {"pass": 0})
checkpoint.save(state, {"pass": 1})
last = checkpoint.save(jax.tree.map(lambda x: x, state), {"pass": 2}).with_suffix(".orbax")
assert len(list(pathlib.Path(sys.argv[1]).glob("*.orbax"))) == 2
about, back = checkpoint.restore(state)
assert about["pass"] == 2 and back["local"].sharding == sharding and (back["local"] == state["local"]).all()
assert (jax.random.key_data(back["key"]) == jax.random.key_data(state["key"])).all()
digests = next(last.parent.glob(last.name + "-0.json"))
digests.write_text(digests.read_text().replace("int32", "int16"))
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    about, _ = checkpoint.restore(state)
assert about["pass"] == 1 and "going back" in str(seen[-1].message), seen
"""
    flags = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=flags, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


# --- what a fit is of ----------------------------------------------------------------------------
def scaled(factor):
    return lambda params, x: -factor * (x - params["m"]) ** 2


def test_a_fingerprint_sees_numbers_structure_and_code():
    def of(factor=1.0, rate=0.1, k=2, floor=1e-6):
        user = jaxem.log_joint(scaled(factor), init={"m": jnp.zeros(())})
        return fingerprint((user, jaxem.GEM(optax.adam(rate)), jaxem.Mixture(k, jaxem.Gaussian(floor=floor)), np.arange(3)))

    assert of() == of()  # whatever the addresses of the functions
    assert len({of(), of(factor=2.0), of(rate=0.2), of(k=3), of(floor=1e-5)}) == 5
    assert fingerprint(np.zeros(2, np.float32)) != fingerprint(np.zeros(2)) != fingerprint(np.zeros((2, 1)))


@pytest.mark.published
def test_a_fingerprint_is_the_same_in_another_process():
    code = "import test_checkpoint as t, jaxem, optax, jax.numpy as jnp\n"
    code += "from jaxem.storage.fingerprint import fingerprint\n"
    code += "u = jaxem.log_joint(t.scaled(2.0), init={'m': jnp.zeros(())})\n"
    code += "u = (u, t.Once(), t.MoreCounts(), t.straight, t.reads)\n"
    code += "print(fingerprint((u, jaxem.GEM(optax.adam(.1)), jaxem.HMM(3, jaxem.Poisson()), {'a', 'b'}.issuperset)))"
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, Path(__file__).parents[:2]), os.environ.get("PYTHONPATH", "")]),
    }
    seen = {
        subprocess.run([sys.executable, "-c", code], env={**env, "PYTHONHASHSEED": seed}, capture_output=True, text=True).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1 and len(seen.pop().strip()) == 64


#: What functions below read.
SCALE, TABLE, SEEN = 2.0, {"a": np.ones(2)}, (0 for _ in iter(int, 1))
LOCK, COUNTER = threading.Lock(), types.SimpleNamespace(rate=1.0)


def helper(x):
    return SCALE * x


def reads(params, x):
    import support as s

    with LOCK:
        within = lambda y: helper(y) + TABLE["a"].sum() + COUNTER.rate  # noqa: E731
        return within(params["m"] * x) + s.read.factor + jnp.exp(x) + functools.partial(np.add, 1)(x)


def loses(params, x):
    return next(SEEN) + x


def times(factor):
    def wrapped(function):
        @functools.wraps(function)
        def call(*args):
            return factor * function(*args)

        return call

    return wrapped


@jax.custom_vjp
def straight(x):
    return x


straight.defvjp(lambda x: (x, None), lambda _, g: (SCALE * g,))

CHANGES = {
    "a global of a helper": lambda m: m.setattr(sys.modules[__name__], "SCALE", 3.0),
    "the helper": lambda m: m.setattr(sys.modules[__name__], "helper", lambda x: x),
    "an entry of a dict": lambda m: m.setitem(TABLE, "a", np.zeros(2)),
    "an attribute of an object": lambda m: m.setattr(COUNTER, "rate", 2.0),
    "what a module's function holds": lambda m: m.setattr(support.read, "factor", 2.0, raising=False),
    "a function of a module": lambda m: m.setattr(support, "read", helper),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_fingerprint_follows_what_a_function_reads(monkeypatch, name):
    monkeypatch.setattr(support.read, "factor", 1.0, raising=False)
    before = fingerprint(reads)
    assert fingerprint(reads) == fingerprint(jax.jit(reads).__wrapped__) == before
    with monkeypatch.context() as m:
        CHANGES[name](m)
        assert fingerprint(reads) != before
    assert fingerprint(reads) == before


def test_a_fingerprint_sees_into_wrappers(monkeypatch):
    wrappers = (jax.jit, jax.vmap, times(2), times(3), functools.lru_cache, lambda f: functools.partial(f, 1))
    seen = [fingerprint(wrap(helper)) for wrap in wrappers] + [fingerprint(straight), fingerprint(functools.partial(helper, 2))]
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    seen += [fingerprint(wrap(helper)) for wrap in wrappers] + [
        fingerprint(straight),
        fingerprint(functools.partial(helper, 2)),
    ]
    assert len(set(seen)) == len(seen)


def test_what_cannot_be_followed_is_refused_by_name(tmp_path):
    model = jaxem.log_joint(lambda params, x: loses(params, x)[None], init={"m": jnp.zeros(())})
    with pytest.raises(TypeError, match=r"checkpoint: nothing would tell whether model .*loses reads SEEN: .*generator"):
        jaxem.fit(model, np.ones(3, np.float32), checkpoint=tmp_path)


# --- fits ----------------------------------------------------------------------------------------
def in_pieces(case, directory, **size):
    """The fit, stopped after a few segments and called again until it is done; and how often it was called."""
    for calls in range(1, 200):
        looks = iter(range(100))
        result = fit(case, directory, callback=lambda _, looks=looks: next(looks) == 9, **size)
        if not (np.asarray(result.restarts.status) == Status.INTERRUPTED).any():
            return result, calls
    raise AssertionError("never done")


SIZE = {"n": 300, "steps": 60}


@pytest.mark.parametrize(
    "case", ["rounds", *(pytest.param(c, marks=pytest.mark.published) for c in ("em", "gem", "squarem", "anderson"))]
)
def test_a_fit_in_pieces_has_the_same_bits(x64, tmp_path, monkeypatch, case):
    whole = fit(case, None, **SIZE)
    monkeypatch.setattr(segments, "SECONDS", 0.0)
    result, calls = in_pieces(case, tmp_path, **SIZE)
    assert calls >= 3 and same(result, whole)
    assert len(Checkpoint(tmp_path).paths()) == 2
    assert same(fit(case, tmp_path, **SIZE), whole)  # what is done is only read back


def test_a_checkpoint_of_another_fit_is_refused(x64, tmp_path):
    fit("em", tmp_path, n=60, steps=2)
    for case, size, what in (("em", (61, 2), "data"), ("em", (60, 3), "max_steps"), ("squarem", (60, 2), "algorithm")):
        with pytest.raises(ValueError, match=f"another fit: not the same {what};"):
            fit(case, tmp_path, *size)


@jaxem.struct
class Once(jaxem.StopRule):
    """A rule of one's own."""

    gain: float = 1e-3

    def reason(self, step):
        return step.objective - step.old_objective <= self.gain


@jaxem.struct
class Counts(jaxem.Poisson):
    """A family of one's own, one class above jaxem's."""

    @property
    def least(self):
        return 1e-3

    def m_step(self, stats, params):
        return {"rate": jnp.maximum(super().m_step(stats, params)["rate"], self.least)}


@jaxem.struct
class MoreCounts(Counts):
    """What it does stands above."""


@pytest.mark.parametrize(
    ("cls", "name", "new", "what"),
    [
        (Once, "reason", lambda self, step: step.objective - step.old_objective <= 2 * self.gain, "stop"),
        (Counts, "m_step", lambda self, stats, params: params, "model"),
        (Counts, "least", property(lambda self: 1e-2), "model"),
    ],
)
def test_a_checkpoint_of_an_edited_class_is_refused(tmp_path, monkeypatch, cls, name, new, what):
    def again():
        x = np.random.default_rng(0).poisson([2, 9], (30, 2)).ravel()
        model = jaxem.Mixture(2, Counts())
        return jaxem.fit(model, x, key=jax.random.key(0), stop=Once(), max_steps=3, checkpoint=tmp_path)

    assert same(again(), again())
    monkeypatch.setattr(cls, name, new)
    with pytest.raises(ValueError, match=f"another fit: not the same {what};"):
        again()


def test_a_fingerprint_sees_the_classes_above_and_no_text(monkeypatch):
    before = fingerprint((MoreCounts(), jaxem.Poisson()))
    monkeypatch.setattr(Once, "reason", lambda self, step: True)
    monkeypatch.setattr(Counts, "__doc__", "Said otherwise.")
    assert fingerprint((MoreCounts(), jaxem.Poisson())) == before
    monkeypatch.setattr(Counts, "near", 0.1, raising=False)
    assert fingerprint((MoreCounts(), jaxem.Poisson())) != before


def test_a_damaged_checkpoint_costs_a_few_steps(x64, tmp_path, monkeypatch):
    whole = fit("em", None, **SIZE)
    monkeypatch.setattr(segments, "SECONDS", 0.0)
    looks = iter(range(10))
    fit("em", tmp_path, callback=lambda _: next(looks) == 6, **SIZE)
    last = Checkpoint(tmp_path).paths()[-1]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="going back"):
        assert same(fit("em", tmp_path, **SIZE), whole)


@pytest.mark.parametrize("case", ["em", *(pytest.param(c, marks=pytest.mark.published) for c in ("rounds", "gem"))])
def test_killed_at_any_moment_it_resumes_to_the_same_bits(x64, case):
    """Three of the twenty moments of kill_and_resume.py."""
    size = {"rounds": 0.6, "gem": 0.3, "em": 0.4}
    whole = fit(case, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        equal_bits, _ = killed_and_resumed(case, size[case], whole, 3.0)
    assert equal_bits
