"""Chains taken a segment of time at a time: values, derivatives and fits of the whole, in a fraction of its memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.latents import chain, long_chain
from jaxem.models.chains import hmm


def score(mean, x):
    return -jnp.square(x[None] - mean[:, None, None]) / 2


def whole(log_initial, log_transition, mean, x, valid):
    return chain.log_partition(log_initial, log_transition, score(mean, x), valid)


def segmented(length):
    return lambda i, a, mean, x, valid: long_chain.log_partition(i, a, score, mean, x, valid=valid, length=length)


def problem(dtype, k=3, lengths=(37, 20, 1)):
    """A left-right chain with a way back, ragged, in which one observation is out of all proportion."""
    rng = np.random.default_rng(0)
    transition = np.array([[0.7, 0.3, 0], [0, 0.8, 0.2], [0.1, 0, 0.9]])
    x = 2 * rng.normal(size=(len(lengths), max(lengths)))
    x[0, 7] = 40
    with np.errstate(divide="ignore"):
        args = np.log([0.5, 0.5, 0]), np.log(transition), np.array([-1.0, 0, 2]), x
    return [jnp.asarray(a, dtype) for a in args], np.arange(max(lengths)) < np.array(lengths)[:, None]


def test_segments_equal_the_whole(dtype, length=5):
    args, valid = problem(dtype)
    weight = jnp.asarray([1.0, 2.0, 0.5], dtype)
    value = lambda f: jax.jit(jax.value_and_grad(lambda *a: weight @ f(*a, valid), (0, 1, 2, 3)))(*args)  # noqa: E731
    got, wanted = value(segmented(length)), value(whole)
    rtol = 1e-5 if dtype == np.float32 else 1e-12
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=10 * rtol), got, wanted)
    assert got[1][1][0, 2] == 0 and got[1][0][2] == 0
    assert got[0].dtype == dtype


@pytest.mark.published
def test_derivatives_forward_and_twice(x64):
    (log_initial, log_transition, mean, x), valid = problem(np.float64, lengths=(9, 4))
    of_mean = lambda f: lambda mean: f(log_initial, log_transition, mean, x, valid).sum()  # noqa: E731
    for derivative in (jax.jacfwd, jax.hessian):
        got, wanted = (jax.jit(derivative(of_mean(f)))(mean) for f in (segmented(4), whole))
        np.testing.assert_allclose(got, wanted, rtol=1e-10)


@pytest.mark.published
def test_a_fit_in_segments(x64):
    """Missing steps, labels, weights and restarts: the same history and parameters as all at once."""
    rng = np.random.default_rng(0)
    x = jaxem.sequences([rng.poisson(np.repeat([2.0, 9.0, 3.0], 7)).astype(float) for _ in range(3)])
    x.x[1, 4:6] = np.nan
    labels = np.full((3, 21), -1)
    labels[0, :2] = [0, 1]
    options = {"key": jax.random.key(0), "n_restarts": 2, "labels": labels, "weight": np.array([1.0, 2, 0.5]), "max_steps": 5}
    model = jaxem.HMM(2, jaxem.Poisson())
    one = jaxem.fit(model, x, **options)
    two = jaxem.fit(jaxem.HMM(2, jaxem.Poisson(), segment=8), x, **options)
    np.testing.assert_allclose(one.history, two.history, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), one.params, two.params)
    with pytest.raises(ValueError, match="segment must be an integer of at least 1"):
        jaxem.fit(jaxem.HMM(2, jaxem.Poisson(), segment=0), x, **options)


@pytest.mark.published
def test_memory_grows_with_the_root_of_time():
    """Compiled, not run: ten times as many steps take little more than the data's own copies; all at once ten times."""
    k, log_k = 32, np.full(32, -np.log(32), np.float32)

    def scratch(function, n_steps):
        x = jax.ShapeDtypeStruct((1, n_steps), jnp.float32)
        total = lambda x: function(log_k, np.tile(log_k, (k, 1)), jnp.zeros(k), x, jnp.ones((1, n_steps), bool)).sum()  # noqa: E731
        run = jax.jit(jax.value_and_grad(total))
        return run.lower(x).compile().memory_analysis().temp_size_in_bytes

    held = partial(scratch, segmented(1000))
    copies = 4 * 4 * 1_000_000  # of the data and of which step is whose
    assert held(1_000_000) < 4 * held(100_000) + copies < scratch(whole, 1_000_000) / 20
    assert scratch(whole, 1_000_000) > 9 * scratch(whole, 100_000)
    assert long_chain.default_segment(k, 1, 1_000_000) == 1024 and long_chain.default_segment(k, 1, 10_000) == 10_000


def test_scores_piece_by_piece(x64, monkeypatch):
    """Of a regression, whose steps are a tree, with a last piece that is not full."""
    rng = np.random.default_rng(0)
    data = {"y": rng.normal(size=11), "inputs": rng.normal(size=(11, 2))}
    line = {"intercept": np.array([0.0, 1]), "coefficients": np.array([[1.0, 2], [0, -1]]), "variance": np.array([1.0, 2])}
    params = {"initial": np.full(2, 0.5), "transition": np.full((2, 2), 0.5), "emission": line}
    model = jaxem.HMM(2, jaxem.LinearRegression())
    value = jax.value_and_grad(lambda p: model.log_prob(p, data).sum())
    wanted = value(params)
    monkeypatch.setattr(hmm, "PIECE", 4)
    monkeypatch.setattr(hmm, "MANY", 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), value(params), wanted)
