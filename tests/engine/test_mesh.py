"""Fits on eight devices are the fits on one: every kind of model, one all-reduce an iteration, both precisions.

JAX fixes the number of devices when it starts: the tests of this file run in a process of their own, with eight virtual ones.
"""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support import clusters

import jaxem
from jaxem.fitting import segments

on_eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices: test_on_eight_devices runs it")


@pytest.mark.parametrize("chosen", ["not published", pytest.param("published", marks=pytest.mark.published)])
def test_on_eight_devices(chosen):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        __file__,
        "-m",
        chosen,
        "-k",
        "not on_eight",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout + done.stderr


def rows_mesh() -> Mesh:
    return jax.make_mesh((8,), ("data",))


def two_dimensional() -> Mesh:
    return jax.make_mesh((2, 4), ("restarts", "data"))


def same(got, wanted, rtol: float = 1e-9) -> None:
    """Leaves equal to `rtol` of their largest entry."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol * np.abs(w).max(initial=0))


def fits_alike(model, data, mesh=None, rtol=1e-9, **options):
    options = {"key": jax.random.key(0), "max_steps": 8, "stop": jaxem.Stop(loglik_rtol=None), **options}
    one = jaxem.fit(model, data, **options)
    many = jaxem.fit(model, data, mesh=mesh or rows_mesh(), **options)
    same(many.loglik, one.loglik, rtol)
    same(many.params, one.params, rtol)
    same(many.restarts.loglik, one.restarts.loglik, rtol)
    assert int(many.status) == int(one.status) and int(many.n_steps) == int(one.n_steps)
    return one, many


ALGORITHMS = [jaxem.EM(), *(pytest.param(a, marks=pytest.mark.published) for a in (jaxem.Squarem(), jaxem.Anderson()))]


@on_eight
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: type(a).__name__)
def test_mixture_with_absent_rows(algorithm):
    """103 rows on 8 devices: padded with rows of weight zero; a whole device's rows absent and NaN."""
    x, weight = clusters(103, 2, 3), np.ones(103)
    x[:20], weight[:20] = np.nan, 0
    fits_alike(jaxem.GaussianMixture(3), x, weight=weight, algorithm=algorithm, n_restarts=2, block_size=5)


@on_eight
@pytest.mark.published
def test_restarts_by_data():
    """Three restarts on two groups of four devices."""
    fits_alike(jaxem.GaussianMixture(3), clusters(103, 2, 3), two_dimensional(), n_restarts=3)


@on_eight
@pytest.mark.published
def test_rounds():
    fits_alike(jaxem.GaussianMixture(2), clusters(64, 2, 3), two_dimensional(), n_restarts=6, rounds=jaxem.Rounds(first=3))


@on_eight
@pytest.mark.published
def test_sharded_arrays_need_no_mesh_argument():
    x = clusters(64, 2, 3)
    laid = jax.device_put(x, NamedSharding(rows_mesh(), PartitionSpec("data")))
    options = {"init": jaxem.init.Quantiles(), "max_steps": 5}
    got = jaxem.fit(jaxem.GaussianMixture(2), laid, **options)
    assert len(got.loglik.sharding.device_set) == 8
    same(got.params, jaxem.fit(jaxem.GaussianMixture(2), x, **options).params)


@on_eight
@pytest.mark.published
def test_sequences():
    rng = np.random.default_rng(0)
    data = jaxem.sequences([rng.poisson(2 + 5 * (i % 2), size=5 + i % 4) for i in range(11)])
    fits_alike(jaxem.HMM(2, jaxem.Poisson()), data)


@on_eight
@pytest.mark.published
def test_superposition():
    rng = np.random.default_rng(0)
    row = rng.uniform(size=(37, 4))
    fits_alike(jaxem.Superposition(), {"y": rng.poisson(row @ np.arange(1.0, 5)), "row": row})


@on_eight
@pytest.mark.published
def test_local_rows_stay_on_their_device():
    words = np.random.default_rng(0).poisson(1.5, size=(21, 6))
    one, many = fits_alike(jaxem.LDA(2), words, block_size=2)
    same(many.local, one.local)
    divisible = jaxem.fit(jaxem.LDA(2), words[:16], key=jax.random.key(0), max_steps=2, mesh=rows_mesh())
    assert divisible.local.addressable_shards[0].data.shape == (2, 2)


def curves(params, x):
    return -0.5 * jnp.square(x["y"] - params["slope"] * x["t"]) + jax.nn.log_softmax(params["mix"])


@on_eight
@pytest.mark.published
def test_log_joint_sums_its_passes_over_devices():
    """Two lines of different slopes; the M-step is Optax's, with passes over the data."""
    rng = np.random.default_rng(0)
    t = rng.normal(size=61)
    data = {"t": t, "y": np.where(rng.uniform(size=61) < 0.5, 3 * t, -2 * t) + rng.normal(size=61) / 9}
    model = jaxem.log_joint(curves, init={"slope": np.array([1.0, -1.0]), "mix": np.zeros(2)})
    fits_alike(model, data, rtol=1e-6, max_steps=3)


@on_eight
@pytest.mark.published
def test_float32():
    x = clusters(1000, 2, 3).astype(np.float32)
    fits_alike(jaxem.GaussianMixture(3), x, rtol=1e-6, block_size=25, init=jaxem.init.Quantiles())


@on_eight
@pytest.mark.published
def test_inside_jit_and_its_gradient():
    """Fitted on four devices inside jit; the derivative of the log-likelihood in the data's weights too."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    x = clusters(30, 1, 2)

    def loglik(weight, mesh):
        found = jaxem.fit(jaxem.GaussianMixture(2), x, weight=weight, init=jaxem.init.Quantiles(), max_steps=20, mesh=mesh)
        return found.loglik

    alone, many = (jax.jit(jax.value_and_grad(loglik), static_argnums=1)(jnp.ones(30), m) for m in (None, mesh))
    same(many, alone, 1e-8)


def nesting(text: str) -> list[int]:
    """Number of loops around each all-reduce of a compiled program."""
    bodies = re.split(r"\n(?=%|ENTRY)", text)
    calls, loops, reduces, names = {}, {}, {}, []
    for body in bodies:
        name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", body)
        if not name:
            continue
        names.append(name[1])
        loops[name[1]] = set(re.findall(r"(?:body|condition)=%?([\w.\-]+)", body))
        calls[name[1]] = set(re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", body))
        for branches in re.findall(r"branch_computations=\{([^}]*)\}", body):
            calls[name[1]] |= set(re.findall(r"%?([\w.\-]+)", branches))
        reduces[name[1]] = len(re.findall(r"= .*\ball-reduce(?:-start)?\(", body))

    def depth(name: str) -> int:
        above = [depth(n) + 1 for n in names if name in loops[n]] + [depth(n) for n in names if name in calls[n]]
        return max(above, default=0)

    return [depth(name) for name in names for _ in range(reduces[name])]


@on_eight
def test_one_all_reduce_an_iteration(monkeypatch):
    """It lies in the loop of EM steps and in no loop within that one, and its size does not depend on N."""
    texts, compiled = {}, segments.run_segment

    def spy(problem, *arguments):
        size = problem.blocks.weight.size
        texts[size] = texts.get(size) or compiled.lower(problem, *arguments).compile().as_text()
        return compiled(problem, *arguments)

    monkeypatch.setattr(segments, "run_segment", spy)
    for n in (96, 192):
        jaxem.fit(jaxem.GaussianMixture(2), clusters(n, 2, 2), key=jax.random.key(0), n_restarts=3, max_steps=2,
                  mesh=rows_mesh(), block_size=4)  # fmt: skip
    shapes = [re.findall(r"= (\S+) all-reduce(?:-start)?\(", text) for text in texts.values()]
    assert len(shapes) == 2 and len(shapes[0]) == 1 and shapes[0] == shapes[1]
    for text in texts.values():
        assert nesting(text) == [1]
        assert len(re.findall(r"body=", text)) > 1  # the scan over blocks is there
        assert not re.findall(r"\b(?:all-gather|all-to-all|collective-permute)\(", text)


@on_eight
def test_bad_mesh():
    x = clusters(16, 2, 2)
    with pytest.raises(TypeError, match=r"mesh must be a jax.sharding.Mesh.*got int"):
        jaxem.fit(jaxem.GaussianMixture(2), x, key=jax.random.key(0), mesh=8)
    with pytest.raises(ValueError, match=r"mesh must have an axis for the rows besides 'restarts'"):
        jaxem.fit(jaxem.GaussianMixture(2), x, key=jax.random.key(0), mesh=jax.make_mesh((8,), ("restarts",)))


@on_eight
@pytest.mark.published
def test_the_law_of_the_device_count():
    report = jaxem.check_model(jaxem.Mixture(2, jaxem.Poisson()), np.random.default_rng(0).poisson(3, size=40))
    assert "device-count" in report.ran
