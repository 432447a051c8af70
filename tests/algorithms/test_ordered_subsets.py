"""Ordered subsets: OSEM as it is written, then what makes it safe for any model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.numerics.blocks import cut, dealt

STILL = jaxem.Stop(None)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def counts(noise=True):
    rng = np.random.default_rng(0)
    a = rng.gamma(0.5, size=(60, 12))
    mean = a @ (rng.gamma(2.0, size=12) * 5)
    return a, rng.poisson(mean).astype(float) if noise else mean


def osem(a, y, x, n_subsets, n_epochs):
    for _ in range(n_epochs):
        for s in range(n_subsets):
            part, seen = a[s::n_subsets], y[s::n_subsets]
            x = x * (part.T @ (seen / (part @ x))) / part.sum(0)
    return x


@pytest.mark.parametrize("n_subsets, block_size", [(4, 11), pytest.param(7, None, marks=pytest.mark.published)])
def test_an_epoch_is_osem(n_subsets, block_size):
    a, y = counts(noise=False)  # consistent data: no epoch falls
    data, start = {"y": y, "row": a}, {"rate": np.ones(12)}
    algorithm = jaxem.OrderedSubsets(n_subsets)
    result = jaxem.fit(
        jaxem.Superposition(), data, init=start, algorithm=algorithm, max_steps=3, stop=STILL, block_size=block_size
    )
    np.testing.assert_allclose(result.params["rate"], osem(a, y, np.ones(12), n_subsets, 3), rtol=1e-10)
    plain = jaxem.fit(jaxem.Superposition(), data, init=start, max_steps=3 * n_subsets // 2, stop=STILL)
    assert result.loglik > plain.loglik  # each epoch does the work of many EM maps


@pytest.mark.published  # takes longer than a default test may
def test_one_subset_is_em():
    a, y = counts()
    settings = {"data": {"y": y, "row": a}, "init": {"rate": np.ones(12)}, "max_steps": 5, "stop": STILL}
    one = jaxem.fit(jaxem.Superposition(), algorithm=jaxem.OrderedSubsets(1), **settings)
    em = jaxem.fit(jaxem.Superposition(), **settings)
    np.testing.assert_allclose(one.params["rate"], em.params["rate"], rtol=1e-12)


def test_epochs_that_fall_are_refused_and_the_restart_ends_at_the_maximum():
    a, y = counts()
    data = {"y": y, "row": a}
    settings = {"init": {"rate": np.ones(12)}, "stop": jaxem.Stop(1e-12), "max_steps": 20_000}
    em = jaxem.fit(jaxem.Superposition(), data, **settings)
    safe = jaxem.fit(jaxem.Superposition(), data, algorithm=jaxem.OrderedSubsets(15), **settings)
    # As it is written OSEM ends in a cycle below the maximum.
    cycle = {"rate": jnp.asarray(osem(a, y, np.ones(12), 15, 500))}
    log_prob = jaxem.Superposition().log_prob(cycle, {k: jnp.asarray(v) for k, v in data.items()})
    assert log_prob.sum() < em.loglik - 0.05
    assert safe.status == jaxem.Status.CONVERGED and safe.n_steps < em.n_steps
    assert (np.diff(safe.history) >= 0).all()
    np.testing.assert_allclose(safe.loglik, em.loglik, atol=1e-6)


@pytest.mark.published  # takes longer than a default test may
def test_any_model_restarts_weights_and_priors():
    rng = np.random.default_rng(1)
    y = np.concatenate([rng.poisson(2, 60), rng.poisson(9, 60)])[rng.permutation(120)]  # subsets alike
    # A prior counts once an M-step, against statistics scaled up to all data.
    model = jaxem.Mixture(2, jaxem.Poisson(jaxem.GammaPrior(50.0, 10.0)), jaxem.Dirichlet(20.0))
    settings = {"key": jax.random.key(0), "weight": rng.integers(0, 3, 120).astype(float), "stop": jaxem.Stop(1e-12)}
    em = jaxem.fit(model, y, n_restarts=3, **settings)
    restarts = jaxem.fit(model, y, n_restarts=3, algorithm=jaxem.OrderedSubsets(3), **settings)
    assert all((np.diff(h[np.isfinite(h)]) > -1e-9).all() for h in np.asarray(restarts.restarts.history))
    np.testing.assert_allclose(restarts.objective, em.objective, rtol=1e-9)
    alone = jaxem.fit(model, y, algorithm=jaxem.OrderedSubsets(3), **settings)
    np.testing.assert_allclose(alone.restarts.loglik[0], restarts.restarts.loglik[0], rtol=1e-9)


@pytest.mark.published  # takes longer than a default test may
def test_local_parameters_travel_with_their_rows():
    rng = np.random.default_rng(2)
    topics = rng.dirichlet(np.full(15, 0.3), 2)
    x = np.stack([rng.multinomial(50, t @ topics) for t in rng.dirichlet([0.5, 0.5], 24)]).astype(float)
    result = jaxem.fit(jaxem.LDA(2), x, key=jax.random.key(0), algorithm=jaxem.OrderedSubsets(3), max_steps=40, block_size=7)
    assert result.local.shape == (24, 2) and (np.diff(result.history) > -1e-9).all()
    natural = jaxem.LDA(2).pack(jaxem.LDA(2).natural(result.params))
    own = jaxem.LDA(2).log_marginal(natural, jnp.asarray(x), jaxem.Rows(local=result.local)).sum()
    np.testing.assert_allclose(result.loglik, own, rtol=1e-12)


def test_dealt_takes_rows_in_turn():
    blocks = cut({"x": jnp.arange(23.0)}, None, jnp.arange(23), 6)
    got, local = dealt(blocks, blocks.data["x"], 4)
    for s in range(4):
        on = np.asarray(got.weight[s]) > 0
        np.testing.assert_array_equal(np.sort(got.data["x"][s][on]), np.arange(23.0)[s::4])
        np.testing.assert_array_equal(got.labels[s][on], local[s][on])
    assert got.weight.shape[2] <= 6 and got.weight.sum() == 23


def test_bad_input():
    a, y = counts()
    with pytest.raises(ValueError, match=r"n_subsets must be from 1 to the number of rows, 60; got 61"):
        jaxem.fit(jaxem.Superposition(), {"y": y, "row": a}, algorithm=jaxem.OrderedSubsets(61))
    model = jaxem.log_joint(lambda p, x: -((x - p["mean"]) ** 2) / 2, init={"mean": jnp.asarray([-1.0, 1.0])})
    with pytest.raises(TypeError, match="local scores"):
        jaxem.fit(model, np.arange(6.0), algorithm=jaxem.OrderedSubsets(2))
