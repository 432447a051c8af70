"""What a fit will take: arithmetic counted, memory foreseen, and blocks that shrink before memory runs out."""

import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import clusters

import jaxem
from jaxem.fitting.arithmetic import operations
from jaxem.fitting.layout import LIVE, available_bytes, lay_out, rows_width

MODEL = jaxem.GaussianMixture(4, "diag")


# --- arithmetic ----------------------------------------------------------------------------------
def count(f, *shapes):
    return operations(jax.make_jaxpr(f)(*(jnp.ones(s) for s in shapes)))


def test_operations_are_counted_and_a_loop_as_often_as_it_runs():
    assert count(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert count(lambda a: jnp.exp(a) + a, (11,)) == 2 * 11
    assert count(lambda a: a.sum(0), (11, 2)) == 22
    assert count(lambda a: a.T.reshape(-1)[:3], (4, 2)) == 0
    assert count(lambda a: jax.lax.scan(lambda c, x: (c + x, None), a[0], a)[0], (10, 6)) == 60
    assert count(lambda a: jax.lax.while_loop(lambda c: True, lambda c: c * 2, a), (6,)) == 6
    assert count(lambda a: jax.lax.cond(True, lambda x: x * 2, lambda x: jnp.exp(x * 2), a), (6,)) == 12
    assert count(jnp.linalg.cholesky, (6, 6)) == pytest.approx(6**3 / 3, abs=150)  # and zeros above the diagonal


def test_the_count_agrees_with_xlas_where_there_is_no_loop():
    def f(x, w):
        scores = w @ x.T
        return jax.value_and_grad(lambda s: jax.nn.logsumexp(s, 0).sum())(scores)

    x, w = jnp.ones((50, 16)), jnp.ones((8, 16))
    known = jax.jit(f).lower(x, w).compile().cost_analysis()["flops"]
    assert count(f, x.shape, w.shape) == pytest.approx(known, rel=0.25)


# --- memory --------------------------------------------------------------------------------------
def laid_out(n, d, n_restarts, limit, block_size=None):
    params = MODEL.template(jnp.ones((8, d), jnp.float32))
    data = jnp.broadcast_to(jnp.float32(0), (n, d))
    options = SimpleNamespace(n_restarts=n_restarts, block_size=block_size, memory_limit=limit, mesh=None)
    layout = lay_out(MODEL, params, data, None, options)
    return layout, LIVE * rows_width(MODEL, params, data, None, layout.width) * layout.block_size * 4 + n * d * 4


def test_blocks_shrink_before_restarts_and_both_before_memory_runs_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        roomy, needed = laid_out(10_000, 3, 16, 10**9)
    assert needed < 10**8
    tight = {}
    for limit in (needed // 2, 10_000 * 12 + 100_000, 10_000 * 12 + 2_000):
        with pytest.warns(UserWarning, match=r"fit: blocks of .* rows and 16 restarts at a time would take about"):
            tight[limit], taken = laid_out(10_000, 3, 16, limit)
        assert taken <= limit
    half, less, least = tight.values()
    assert half.width == 16 and half.block_size < roomy.block_size
    assert less.width < 16 and least.width == 1 and least.block_size < 256
    with pytest.warns(UserWarning, match="which may still be too much"):
        laid_out(10_000, 3, 16, 0)
    with pytest.warns(UserWarning, match="blocks of 9999 rows"):
        assert laid_out(10_000, 3, 16, needed // 2, block_size=9_999)[0].block_size < 9_999


def test_a_fit_in_little_memory_says_so_and_finds_the_same(x64, monkeypatch):
    x = clusters(700, 2, 3)
    options = {"key": jax.random.key(0), "n_restarts": 3, "max_steps": 5, "stop": jaxem.Stop(None)}
    roomy = jaxem.fit(MODEL, x, **options)
    monkeypatch.setenv("JAXEM_MEMORY_LIMIT", str(x.nbytes + 30_000))
    with pytest.warns(UserWarning, match="restarts at a time would take about"):
        tight = jaxem.fit(MODEL, x, **options)
    np.testing.assert_allclose(tight.restarts.loglik, roomy.restarts.loglik, rtol=1e-9)
    monkeypatch.setenv("JAXEM_MEMORY_LIMIT", "much")
    with pytest.raises(ValueError, match="JAXEM_MEMORY_LIMIT must be a number of bytes; got 'much'"):
        jaxem.fit(MODEL, x, **options)


def test_a_plan_tells_what_the_fit_will_do(monkeypatch):
    shape = jax.ShapeDtypeStruct((5_000, 3), jnp.float32)
    plan = jaxem.plan(MODEL, shape, n_restarts=20)
    assert plan.restart_batch == 16 and plan.n_blocks == -(-5_000 // plan.block_size)
    assert plan.data_bytes == 60_000 and plan.fits
    # A pass over the data multiplies them with the parameters twice: scores, and their gradient.
    assert plan.flops > 2 * 2 * 5_000 * 4 * 2 * 3
    assert plan.loop_bytes > plan.data_bytes and plan.peak_bytes == max(plan.start_bytes, plan.loop_bytes)
    assert "fits in the" in str(plan)
    monkeypatch.setenv("JAXEM_MEMORY_LIMIT", "100000")
    with pytest.warns(UserWarning):
        tight = jaxem.plan(MODEL, np.zeros((5_000, 3), np.float32), n_restarts=20)
    assert not tight.fits and "DOES NOT FIT" in str(tight) and tight.available_bytes == 100_000
    assert tight.restart_batch < 16


def test_available_memory_is_a_number_of_bytes():
    assert 10**7 < available_bytes() < 10**13
