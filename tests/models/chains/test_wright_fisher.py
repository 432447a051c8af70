"""Selection from allele counts over generations: the transition against exact drift, and intervals that cover."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxem

POPULATION, GENERATIONS, EVERY, SAMPLED = 1000, 60, 10, 50


def simulated(seed, selection):
    """Counts every tenth generation from exact binomial drift that starts at a frequency of 0.1 to 0.5."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.1, 0.5)
    total, count = np.zeros(GENERATIONS), np.zeros(GENERATIONS)
    for t in range(GENERATIONS):
        if t % EVERY == 0:
            total[t], count[t] = SAMPLED, rng.binomial(SAMPLED, x)
        x = rng.binomial(POPULATION, x * (1 + selection) / (1 + selection * x)) / POPULATION
    return {"count": count[None], "total": total[None]}


def test_a_generation_of_drift(x64):
    """Mean and variance of a step, and fixation, against the binomial distribution."""
    model = jaxem.WrightFisher(200.0, n_grid=201)
    moves = np.exp(np.asarray(model.natural({"selection": jnp.array(0.1)})["log_transition"]))
    x = np.asarray(model.frequencies())
    np.testing.assert_allclose(moves.sum(1), 1, rtol=1e-12)
    assert moves[0, 0] == 1 and moves[-1, -1] == 1
    mean = x * 1.1 / (1 + 0.1 * x)
    inner = slice(20, -20)  # near the ends the normal share is cut off
    np.testing.assert_allclose((moves @ x)[inner], mean[inner], atol=1e-4)
    variance = moves @ x**2 - (moves @ x) ** 2
    np.testing.assert_allclose(variance[inner], (mean * (1 - mean) / 200)[inner], rtol=0.02)
    exact = stats.binom(200, mean[100]).cdf(np.arange(201))
    assert np.abs(np.cumsum(moves[100]) - exact).max() < 0.02


@pytest.mark.published
def test_filter_equals_enumeration_of_paths(x64):
    model = jaxem.WrightFisher(6.0, n_grid=5)
    params = {"selection": jnp.array(-0.2)}
    data = {"count": np.array([[1.0, 0.0, 2.0]]), "total": np.array([[3.0, 0.0, 2.0]])}
    moves, x = np.exp(np.asarray(model.natural(params)["log_transition"])), np.asarray(model.frequencies())
    first, last = stats.binom(3, x).pmf(1), stats.binom(2, x).pmf(2)
    expected = np.log(first / 5 @ moves @ moves @ last)
    np.testing.assert_allclose(model.log_prob(params, model.validate(data)), [expected], rtol=1e-12)


def test_one_locus_needs_no_axis(x64):
    """Integers (T,) give the posterior of floats (1, T), without the axis."""
    model, params = jaxem.WrightFisher(6.0, n_grid=5), {"selection": -0.2}
    data = {"count": np.array([1, 0, 2]), "total": np.array([3, 0, 2])}
    np.testing.assert_array_equal(model.n_observations(data), [2])
    one, many = model.posterior(params, data), model.posterior(params, model.validate(data))
    assert one.shape == (3, 5) and many.shape == (1, 3, 5)
    np.testing.assert_allclose(one, many[0], rtol=1e-12)
    np.testing.assert_allclose(one.sum(1), 1, rtol=1e-12)


@pytest.mark.published
def test_intervals_cover(x64, optimised):
    """95% intervals for the selection coefficient hold the truth in at least 90 of 100 simulations."""
    selection = 0.04
    data = [simulated(seed, selection) for seed in range(100)]
    stacked = {name: jnp.asarray(np.stack([d[name] for d in data])) for name in ("count", "total")}
    model = jaxem.WrightFisher(float(POPULATION), n_grid=41)

    @jax.jit
    def estimate(stacked):
        def one(d):
            s = jaxem.fit(model, d, max_steps=60, stop=jaxem.Stop(loglik_rtol=1e-7)).params["selection"]
            loglik = lambda s: model.log_prob({"selection": s}, d).sum()  # noqa: E731
            return s, -jax.hessian(loglik)(s)

        return jax.lax.map(one, stacked, batch_size=25)

    s, information = (np.asarray(x) for x in estimate(stacked))
    covered = np.abs(s - selection) <= 1.96 / np.sqrt(information)
    assert covered.sum() >= 90
    assert np.abs(s.mean() - selection) < 3 * s.std() / 10  # no bias beyond what chance explains


@pytest.mark.parametrize(
    "population, data, message",
    [
        (1.0, simulated(0, 0.0), "at least 2 gene copies"),
        (100.0, {"count": [[3.0]], "total": [[2.0]]}, "at most data.'total'"),
        (100.0, {"count": [[-1.0]], "total": [[2.0]]}, "non-negative"),
        (100.0, np.zeros((2, 3)), "must be a dict of 'count' and 'total'"),
    ],
)
def test_bad_input(population, data, message):
    with pytest.raises(ValueError, match=message):
        jaxem.fit(jaxem.WrightFisher(population), data)
