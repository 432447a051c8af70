"""Baum-Welch against published figures, and the chain against the sum over all paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import DATA

import jaxem


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def earthquakes():
    return np.loadtxt(DATA / "earthquakes.csv", skiprows=1)


def ragged(params, lengths, seed=0):
    x = np.asarray(jaxem.HMM(2, jaxem.Poisson()).sample(jax.random.key(seed), params, len(lengths), max(lengths)).x, float)
    return [row[:n] for row, n in zip(x, lengths)]


POISSON = {
    "initial": jnp.array([0.6, 0.4]),
    "transition": jnp.array([[0.9, 0.1], [0.3, 0.7]]),
    "emission": {"rate": jnp.array([2.0, 9.0])},
}


def test_earthquakes():
    model = jaxem.HMM(2, jaxem.Poisson())
    result = jaxem.fit(model, earthquakes(), key=jax.random.key(0), n_restarts=5, stop=jaxem.Stop(1e-12))
    assert abs(float(result.loglik) + 341.878701) < 1e-5
    assert (np.abs(np.asarray(result.restarts.loglik) + 341.878701) < 1e-5).sum() >= 3
    assert (np.diff(result.history) > -1e-9).all()
    np.testing.assert_allclose(np.sort(result.params["emission"]["rate"]), [15.420757, 26.018223], atol=1e-4)
    assert model.n_free_params(earthquakes()) == 5
    np.testing.assert_allclose(jaxem.bic(result, earthquakes()), 2 * 341.878701 + 5 * np.log(107), rtol=1e-7)
    np.testing.assert_allclose(model.log_prob(result.params, earthquakes())[0], result.loglik, rtol=1e-12)


def test_equals_all_paths():
    """Value, expected counts and posterior of a chain with a structural zero, ragged and padded with NaN."""
    params = {
        "initial": np.array([0.7, 0.3, 0.0]),
        "transition": np.array([[0.5, 0.5, 0.0], [0.1, 0.6, 0.3], [0.0, 0.2, 0.8]]),
        "emission": {"rate": np.array([1.0, 4.0, 8.0])},
    }
    parts = [np.array([1.0, 5.0, 7.0, 2.0]), np.array([3.0, 0.0])]
    from scipy.stats import poisson

    loglik, counts, starts, posterior = [], np.zeros((3, 3)), np.zeros(3), np.zeros((2, 4, 3))
    for b, x in enumerate(parts):
        paths = list(itertools.product(range(3), repeat=len(x)))
        mass = np.array([
            params["initial"][z[0]]
            * np.prod([params["transition"][i, j] for i, j in itertools.pairwise(z)])
            * np.prod(poisson.pmf(x, params["emission"]["rate"][list(z)]))
            for z in paths
        ])  # fmt: skip
        loglik.append(np.log(mass.sum()))
        for z, share in zip(paths, mass / mass.sum()):
            starts[z[0]] += share
            for i, j in itertools.pairwise(z):
                counts[i, j] += share
            posterior[b, range(len(x)), z] += share
    model = jaxem.HMM(3, jaxem.Poisson())
    data = {"x": np.full((2, 4), np.nan), "length": np.array([4, 2])}
    for b, x in enumerate(parts):
        data["x"][b, : len(x)] = x
    params = jax.tree.map(jnp.asarray, params)
    np.testing.assert_allclose(model.log_prob(params, data), loglik, rtol=1e-12)
    stats = jax.grad(lambda eta: model.log_marginal(eta, data, jaxem.Rows()).sum())(model.natural(params))
    np.testing.assert_allclose(stats["log_initial"], starts, atol=1e-12)
    np.testing.assert_allclose(stats["log_transition"], counts, atol=1e-12)
    np.testing.assert_allclose(model.posterior(params, data), posterior, atol=1e-12)
    result = jaxem.fit(model, data, init=params, max_steps=3)
    assert result.params["initial"][2] == 0 and result.params["transition"][0, 2] == 0
    assert (np.diff(result.history) >= 0).all()


def test_ragged_weights_and_blocks():
    parts = ragged(POISSON, [20, 7, 1, 13, 20])
    model, options = jaxem.HMM(2, jaxem.Poisson()), {"init": POISSON, "max_steps": 10, "stop": jaxem.Stop(None)}
    whole = jaxem.fit(model, jaxem.sequences(parts), **options)
    blocks = jaxem.fit(model, jaxem.sequences(parts), block_size=2, **options)
    twice = jaxem.fit(model, jaxem.sequences([*parts, parts[1]]), **options)
    weighted = jaxem.fit(model, jaxem.sequences(parts), weight=np.array([1.0, 2, 1, 1, 1]), **options)
    absent = jaxem.fit(model, jaxem.sequences([*parts, np.zeros(9)]), weight=np.r_[np.ones(5), 0], **options)
    for one, two in [(whole, blocks), (twice, weighted), (whole, absent)]:
        np.testing.assert_allclose(one.loglik, two.loglik, rtol=1e-12)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), one.params, two.params)


def test_labels_tie_states():
    x = earthquakes()
    z = (x > 20).astype(int)
    result = jaxem.fit(jaxem.HMM(2, jaxem.Poisson()), x, key=jax.random.key(0), labels=z[None])
    np.testing.assert_allclose(result.params["emission"]["rate"], [x[z == 0].mean(), x[z == 1].mean()], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
@pytest.mark.published
def test_gaussian_emission_in_any_units(dtype):
    """Standardised inside, undone exactly outside; the log-likelihood counts every step of ragged sequences."""
    truth = {
        "initial": jnp.array([0.5, 0.5]),
        "transition": jnp.array([[0.95, 0.05], [0.1, 0.9]]),
        "emission": {"mean": jnp.array([[0.0, 0.0], [3.0, 1.0]]), "covariance": jnp.array([jnp.eye(2), 0.5 * jnp.eye(2)])},
    }
    model = jaxem.HMM(2, jaxem.Gaussian())
    x = np.asarray(model.sample(jax.random.key(3), truth, 6, 150).x)
    data = jaxem.sequences([(row[: 150 - 20 * i] * 10 + 50).astype(dtype) for i, row in enumerate(x)])
    scaled = jaxem.fit(model, data, key=jax.random.key(0), n_restarts=2)
    plain = jaxem.fit(model, data, init=scaled.params, standardize=False)
    np.testing.assert_allclose(scaled.loglik, plain.loglik, rtol=2e-5 if dtype == np.float32 else 1e-7)
    np.testing.assert_allclose(model.log_prob(scaled.params, data).sum(), scaled.loglik, rtol=2e-5)
    assert {leaf.dtype for leaf in jax.tree.leaves(scaled.params)} == {jnp.dtype(dtype)}
    order = np.argsort(scaled.params["emission"]["mean"][:, 0])
    np.testing.assert_allclose(np.asarray(scaled.params["emission"]["mean"])[order], [[50, 50], [80, 60]], atol=3)
    assert model.predict(scaled.params, data).shape == (6, 150)
    jitted = jax.jit(lambda d: jaxem.fit(model, d, init=scaled.params).loglik)(jax.tree.map(jnp.asarray, data))
    np.testing.assert_allclose(jitted, plain.loglik, rtol=2e-5 if dtype == np.float32 else 1e-7)


@pytest.mark.published
def test_long_sequence_in_float32():
    truth = jax.tree.map(lambda a: a.astype(jnp.float32), POISSON)
    model = jaxem.HMM(2, jaxem.Poisson())
    x = np.asarray(model.sample(jax.random.key(0), truth, 1, 10_000).x)

    def grad(p, x):
        data = jaxem.Sequences(x, jnp.array([10_000]))
        return jax.grad(lambda eta: model.log_marginal(eta, data, jaxem.Rows()).sum())(model.natural(p))

    low, high = grad(truth, x.astype(np.float32)), grad(POISSON, x.astype(np.float64))
    assert low["log_transition"].dtype == jnp.float32
    np.testing.assert_allclose(low["log_transition"], high["log_transition"], rtol=1e-3)


def test_optax_emission():
    result = jaxem.fit(jaxem.HMM(2, jaxem.Gamma()), earthquakes() + 1.0, key=jax.random.key(0), max_steps=30)
    assert (np.diff(result.history) > -1e-6).all()


def test_strategies_and_one_sequence():
    x, model = earthquakes(), jaxem.HMM(2, jaxem.Poisson())
    result = jaxem.fit(model, x, key=jax.random.key(0), init=jaxem.init.KMeans())
    assert abs(float(result.loglik) + 341.8787) < 1e-3
    assert model.posterior(result.params, x).shape == (107, 2)
    assert model.predict(result.params, jaxem.sequences([x])).shape == (1, 107)


def test_bad_input():
    model = jaxem.HMM(2, jaxem.Poisson())
    with pytest.raises(ValueError, match="counts"):
        jaxem.fit(model, np.array([1.0, -2.0, 3.0]), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"in 1\.\.3"):
        jaxem.fit(model, {"x": np.ones((2, 3)), "length": np.array([3, 4])}, key=jax.random.key(0))
    with pytest.raises(ValueError, match="sequence 1"):
        jaxem.sequences([np.ones(3), np.ones((2, 2))])
    with pytest.raises(TypeError, match="jit"):
        jax.jit(lambda x: jaxem.fit(model, x, init=POISSON).loglik)(jnp.ones((3, 4)))
