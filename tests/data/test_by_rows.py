"""Answers block by block are those of all rows at once, in memory, in arrays that are given, and one after another."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from data.test_boundary import MODELS, params_of

import jaxem
from jaxem.data import boundary, by_rows

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(11, 3))
MIXTURE = jaxem.GaussianMixture(4)


@pytest.fixture
def in_blocks(monkeypatch):
    """Blocks of four rows, however small the data."""
    planned = by_rows.planned

    def few(*args):
        plan = planned(*args)
        return None if plan is None else dataclasses.replace(plan, rows=min(plan.rows, 4))

    monkeypatch.setattr(by_rows, "planned", few)
    monkeypatch.setattr(by_rows, "is_small", lambda params, data: False)
    monkeypatch.setattr(boundary, "_plans", {})


@pytest.fixture
def fitted(x64):
    template = jax.tree.map(np.asarray, MIXTURE.template(ROWS))
    return {**template, "components": {**template["components"], "mean": ROWS[:4]}}


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-300), a, b)


def test_blocks_answer_as_all_rows_do(fitted, in_blocks, monkeypatch):
    for name in ("posterior", "predict", "log_prob"):
        method = getattr(MIXTURE, name)
        parts = list(method(fitted, ROWS, blocks=True))
        assert [len(x) for x in parts] == [4, 4, 3], name
        out = np.full_like(np.concatenate(parts), -7)
        assert method(fitted, ROWS, out=out) is out
        whole = method(fitted, ROWS)
        assert isinstance(whole, jax.Array)
        for found in (np.concatenate(parts), out):
            np.testing.assert_array_equal(found, whole, name)
        inside = jax.jit(getattr(MIXTURE, name))(fitted, ROWS)  # inside jit all rows are taken at once
        equal(whole, inside)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # where blocks are joined on the device
    equal(MIXTURE.posterior(fitted, ROWS), jax.jit(MIXTURE.posterior)(fitted, ROWS))


def test_answers_of_several_arrays(x64, in_blocks):
    model = jaxem.FactorAnalysis(1)
    params = {"loadings": ROWS[:1].T, "mean": ROWS[0], "noise": np.ones(3)}
    given = np.where(RNG.random(ROWS.shape) < 0.2, np.nan, ROWS)
    inside = jax.jit(model.posterior)(params, given)
    equal(model.posterior(params, given), inside)
    out = jax.tree.map(lambda x: np.zeros(x.shape), inside)
    equal(model.posterior(params, given, out=out), inside)
    equal(out, inside)


def test_size_is_said_before_any_work(fitted, monkeypatch):
    monkeypatch.setattr(by_rows, "pieces", None)
    size = 11 * 4 * 8
    with pytest.raises(
        ValueError, match=rf"posterior must give at most max_bytes={size - 1} bytes.*would take {size}: pass out"
    ):
        MIXTURE.posterior(fitted, ROWS, max_bytes=size - 1)
    wide = jax.ShapeDtypeStruct((10**7, 100), np.float64)  # of an answer that is never made
    with pytest.raises(ValueError, match=f"max_bytes={1 << 32} bytes; its answer would take 8000000000"):
        by_rows.check_size("posterior", by_rows.Plan(wide, (True,), 1), by_rows.Returned())
    for out, got in (
        (np.zeros((11, 3)), r"got \[\(11, 3\)\]"),
        ([np.zeros((11, 4))], "built like"),
        (np.zeros((11, 4), int), "hold float64"),
    ):
        with pytest.raises(ValueError, match=f"out must be .*{got}"):
            MIXTURE.posterior(fitted, ROWS, out=out)
    with pytest.raises(ValueError, match="max_bytes must be positive; got 0"):
        MIXTURE.posterior(fitted, ROWS, max_bytes=0)
    with pytest.raises(ValueError, match="out must be None with blocks=True"):
        MIXTURE.posterior(fitted, ROWS, out=np.zeros((11, 4)), blocks=True)
    with pytest.raises(ValueError, match="posterior must come whole inside jit"):
        jax.eval_shape(lambda p: MIXTURE.posterior(p, ROWS, blocks=True), fitted)


def test_one_long_sequence_has_a_size_too(x64):
    model = jaxem.HMM(2, jaxem.Categorical(3))
    params = model.template(model.validate([0, 1, 2]))
    with pytest.raises(ValueError, match="would take 112"):
        model.posterior(params, [0, 1, 2, 2, 1, 0, 0], max_bytes=111)


def test_rows_of_no_probability_keep_their_numbers(x64, in_blocks):
    model = jaxem.Mixture(2, jaxem.Categorical(2))
    params = {"weights": np.full(2, 0.5), "components": {"probs": np.broadcast_to([1.0, 0.0], (2, 1, 2))}}
    data = (np.arange(11) == 9).astype(int)[:, None]
    with pytest.raises(ValueError, match=r"row\(s\) 9"):
        model.posterior(params, data)


def test_widths_of_parameters_are_not_those_of_rows(x64):
    """Blocks follow from what grows with the rows, and come in few sizes."""
    model, d = jaxem.GaussianMixture(8), 40
    params = model.template(np.zeros((2, d)))
    plans = [by_rows.planned(model.posterior, params, jax.ShapeDtypeStruct((n, d), np.float64)) for n in (10**6, 2 * 10**6)]
    assert plans[0] and plans[0].n_bytes == 10**6 * 8 * 8
    assert all(plan and plan.rows >= 4096 and plan.rows & (plan.rows - 1) == 0 for plan in plans)


@pytest.mark.published
@pytest.mark.parametrize("case", MODELS)
def test_every_model_answers_in_blocks(case, x64, in_blocks):
    model, data, _ = MODELS[case]
    params = params_of(model, data)
    for name in sorted(by_rows.METHODS):
        if getattr(model, name, None) is None or (name == "impute" and case in ("codes", "counts")):
            continue
        twice = boundary.values(model, data)
        twice = jax.tree.map(lambda x: np.tile(np.asarray(x), (6 // len(x) or 1, *(1,) * (x.ndim - 1))), twice)
        equal(getattr(model, name)(params, twice), jax.jit(getattr(model, name))(params, twice))


MEASURED = """
import resource, numpy as np, jaxem
x = np.random.default_rng(0).normal(size=(400_000, 4)).astype(np.float32)
model, k = jaxem.GaussianMixture(128), 128
components = {"mean": x[:k], "covariance": np.broadcast_to(np.eye(4, dtype=np.float32), (k, 4, 4))}
params = {"weights": np.full(k, 1 / k, np.float32), "components": components}
for method in (model.predict, model.log_prob):
    method(params, x[:20_000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for method in (model.predict, model.log_prob):
    method(params, x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6)
"""


@pytest.mark.published
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kilobytes")
def test_memory_is_that_of_the_answer():
    """One (N, K) array would take .2 GB; all rows at once took five of them."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, timeout=300, check=True)
    assert float(done.stdout.split()[-1]) < 0.1
