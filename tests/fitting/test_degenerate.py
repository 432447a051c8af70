"""A fit that collapsed says so and never wins; a limit at which the likelihood is bounded is a place to converge to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import DATA

import jaxem
from jaxem import Status
from jaxem.numerics.floors import RELATIVE, least_variance
from jaxem.types import limits

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 1))
LINE = 1 + 2 * X[:, 0]
WALK = np.cumsum(RNG.normal(size=40))
ANSWERS = (RNG.normal(size=(200, 1)) + RNG.logistic(size=(200, 4)) > 0).astype(float)


# --- the least variance ----------------------------------------------------------------------
def test_least_variance(dtype):
    x = RNG.normal(size=(50, 3)).astype(dtype) * np.array([1, 1e-3, 1e3], dtype)
    x[:, 2] += 1e3
    weight = RNG.uniform(0, 2, 50).astype(dtype)
    weight[:5], x[:5] = 0, np.nan  # absent, whatever they hold
    x[7, 0] = np.nan  # missing
    got = least_variance(jnp.asarray(x), jnp.asarray(weight))
    there = ~np.isnan(x)
    share = weight[:, None] * there / (weight[:, None] * there).sum(0)
    filled = np.where(there, x, 0).astype(np.float64)
    wanted = RELATIVE * ((share * filled**2).sum(0) - (share * filled).sum(0) ** 2)
    np.testing.assert_allclose(got, wanted, rtol=1e-3)
    assert got.dtype == dtype


def test_least_variance_where_nothing_varies(dtype):
    for value, wanted in ((0.0, 1.0), (1e-12, 1e-24), (3e9, 9e18), (0.1, 0.01)):
        np.testing.assert_allclose(least_variance(jnp.full(30, value, dtype)), RELATIVE * wanted, rtol=1e-5)


# --- spikes ----------------------------------------------------------------------------------
SPIKES = {
    "an exact line": (jaxem.Mixture(1, jaxem.LinearRegression()), {"y": LINE, "inputs": X}),
    "a constant response": (jaxem.Mixture(2, jaxem.LinearRegression()), {"y": np.full(20, 0.1), "inputs": X}),
    "a series that stands still": (jaxem.HMM(2, jaxem.AutoRegression(order=1)), np.full(30, 2.0)),
    "a line among factors": (jaxem.Mixture(1, jaxem.Product((jaxem.Gamma(), jaxem.Poisson()), ((0,), (1,)))),
                             np.stack([np.full(20, 2.5), np.arange(20.0)], 1)),
    "equal durations": (jaxem.Mixture(1, jaxem.Gamma()), np.full(20, 2.5)),
    "a regime without noise": (jaxem.MarkovAutoregression(2, 1), np.full(20, 2.0)),
    "known responses on a line": (jaxem.CensoredRegression(), {"lower": LINE, "upper": LINE, "inputs": X}),
    "groups without noise": (jaxem.RandomIntercept(), np.repeat(X, 3, 1)),
    "a constant level": (jaxem.LocalLevel(None), np.full(40, 3.0)),
    "zeros": (jaxem.LocalLevel(None), np.zeros(40)),
    "a straight line as a trend": (jaxem.LocalLinearTrend(None), np.arange(40.0)),
    "one direction": (jaxem.Mixture(1, jaxem.VonMises()), np.full(20, 1.0)),
    "an item put twice": (jaxem.ItemResponse(), np.concatenate([ANSWERS, ANSWERS[:, :1]], 1)),
}  # fmt: skip


#: Compiled for each: these in the default suite.
DEFAULT = {"an exact line", "equal durations", "known responses on a line", "a constant level"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in DEFAULT else pytest.mark.published) for n in SPIKES])
def test_a_spike_is_degenerate(x64, name):
    model, data = SPIKES[name]
    result = jaxem.fit(model, data, key=KEY, max_steps=2_000)
    assert int(result.status) == Status.DEGENERATE
    assert "DEGENERATE: a component collapsed" in str(result) and "at a limit" not in str(result)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


def test_without_standardization_too(x64):
    data = {"y": LINE * 1e-9, "inputs": X}
    result = jaxem.fit(jaxem.Mixture(1, jaxem.LinearRegression()), data, key=KEY, standardize=False)
    assert int(result.status) == Status.DEGENERATE


def test_units_change_nothing(x64):
    """Noise of 1e-3 is no spike in any units."""
    y = LINE + 1e-3 * RNG.normal(size=20)
    for unit in (1e-12, 1.0, 1e9):
        result = jaxem.fit(jaxem.Mixture(1, jaxem.LinearRegression()), {"y": unit * y, "inputs": X}, key=KEY)
        assert int(result.status) == Status.CONVERGED


# --- one floor from the fit on ---------------------------------------------------------------
@pytest.mark.published
def test_the_result_remembers_its_floor(x64):
    data, weight = {"y": LINE + RNG.normal(size=20), "inputs": X}, RNG.uniform(0.5, 2, 20)
    model = jaxem.Mixture(1, jaxem.LinearRegression())
    result = jaxem.fit(model, data, weight=weight, key=KEY)
    floor = result.model.family.floor
    spread = np.average((data["y"] - np.average(data["y"], weights=weight)) ** 2, weights=weight)
    np.testing.assert_allclose(floor, RELATIVE * spread)
    assert model.family.floor is None
    assert float(jax.jit(lambda w: jaxem.fit(model, data, weight=w, key=KEY).model.family.floor)(weight)) == float(floor)
    assert float(jaxem.online.init(model, data, weight=weight, key=KEY, standardize=False).model.family.floor) == float(floor)
    assert float(jaxem.fit(result.model, jax.tree.map(lambda x: 10 * x, data), key=KEY).model.family.floor) == float(floor)
    given = jaxem.fit(jaxem.Mixture(1, jaxem.LinearRegression(floor=1e-3)), data, key=KEY)
    assert float(given.model.family.floor) == 1e-3
    state = jaxem.fit(jaxem.LocalLevel(None), WALK, max_steps=3)
    assert state.model.floor.shape == (1,)


def test_a_given_floor_means_what_it_did(x64):
    data = {"y": LINE, "inputs": X}
    at_it = jaxem.fit(jaxem.Mixture(1, jaxem.LinearRegression(floor=0.25)), data, key=KEY)
    assert int(at_it.status) == Status.DEGENERATE and float(at_it.params["components"]["variance"][0]) == 0.25
    without = jaxem.fit(jaxem.Mixture(1, jaxem.LinearRegression(floor=0.0)), data, key=KEY)
    assert int(without.status) == Status.CONVERGED and float(without.params["components"]["variance"][0]) < 1e-20


# --- limits ----------------------------------------------------------------------------------
def test_limits_are_named_and_no_trouble(x64):
    """Poisson counts, an item that all got right, a level without levels: bounded, and CONVERGED."""
    certain = jaxem.fit(jaxem.ItemResponse(), np.concatenate([ANSWERS, np.ones((200, 1))], 1), max_steps=500)
    assert int(certain.status) == Status.CONVERGED
    assert limits(certain.model, certain.params) == ["intercept (1 of 5)"]
    assert "at a limit, which is no trouble: intercept (1 of 5)" in str(certain)


def test_a_single_noise_is_no_spike(x64):
    """A walk seen without noise, and noise about a level that stays: the next step is not known."""
    model = dataclasses.replace(jaxem.LocalLevel(None), floor=np.array([1e-8]))
    for observation, state, where in ((1e-8, 1.0, "observation_noise"), (1.0, 0.0, "state_noise")):
        params = {"transition": jnp.eye(1), "observation": jnp.eye(1), "state_noise": jnp.array([state])}
        params |= {"observation_noise": jnp.array([observation])}
        assert not model.degenerate(params) and limits(model, params) == [where]
    slope = dataclasses.replace(jaxem.LocalLinearTrend(None), floor=np.array([1e-8]))
    for noise in ([1.0, 0.0], [0.0, 1.0], [0.0, 0.0]):  # of level and slope, seen without noise
        params = {
            "transition": jnp.array([[1.0, 1.0], [0.0, 1.0]]), "observation": jnp.array([[1.0, 0.0]]),
            "state_noise": jnp.array(noise), "observation_noise": jnp.array([1e-8]),
        }  # fmt: skip
        assert bool(slope.degenerate(params)) == (not any(noise))


def test_what_is_fixed_never_counts(x64):
    still = jaxem.LocalLevel(None, fixed={"state_noise": np.zeros(1)}, floor=np.array([1e-8]))
    params = {"transition": jnp.eye(1), "observation": jnp.eye(1), "state_noise": jnp.zeros(1)}
    assert limits(still, params | {"observation_noise": jnp.ones(1)}) == []
    assert still.degenerate(params | {"observation_noise": jnp.array([1e-8])})
    known = jaxem.LocalLevel(None, fixed={"observation_noise": np.ones(1)}, floor=np.array([1e-8]))
    assert not known.degenerate(params | {"observation_noise": jnp.ones(1)})


# --- falls -----------------------------------------------------------------------------------
def test_rounding_is_no_fall(x64):
    """The log-densities of one long series add up to zero: its rounding is that of 2 000 terms of order one."""
    rng = np.random.default_rng(0)
    level = np.repeat(rng.integers(0, 2, 40), 50)
    y = 0.962055882694423 * (level + 0.242 * rng.normal(size=2_000))
    result = jaxem.fit(jaxem.HMM(2, jaxem.Gaussian()), y[:, None], key=KEY, n_restarts=4, stop=jaxem.Stop(1e-15), max_steps=100)
    assert abs(float(result.loglik)) < 1e-9
    assert (np.asarray(result.restarts.status) == Status.CONVERGED).all()


@pytest.mark.published
@pytest.mark.parametrize("k", [4, 6])
def test_a_tighter_tolerance_hides_no_collapse(x64, k):
    x = np.loadtxt(DATA / "iris.csv", delimiter=",", skiprows=1, usecols=range(4))
    loose, tight = (
        np.asarray(jaxem.fit(jaxem.GaussianMixture(k), x, key=KEY, n_restarts=64, stop=jaxem.Stop(rtol)).restarts.status)
        for rtol in (1e-8, 1e-12)
    )
    assert (loose == Status.DEGENERATE).any()
    assert (tight[loose == Status.DEGENERATE] == Status.DEGENERATE).all()


@pytest.mark.published
def test_a_collapsed_line_never_wins(x64):
    """Two lines with noise 1, 30 points each, of which up to four components are fitted from 64 starts."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, second = rng.uniform(-3, 3, (60, 1)), np.arange(60) % 2
        y = np.where(second, 2 * x[:, 0] + 1, -2 * x[:, 0] - 1) + rng.normal(size=60)
        models = [jaxem.Mixture(k, jaxem.LinearRegression()) for k in range(1, 5)]
        chosen = jaxem.select(models, {"y": y, "inputs": x}, key=KEY, n_restarts=64)
        for c in chosen.candidates:
            assert int(c.result.status) == Status.CONVERGED
            assert c.result.params["components"]["variance"].min() > 1e-6
        # The maximum of two lines is above the truth by half a chi-squared of 7, of which 40 is beyond chance.
        lines = np.exp(-0.5 * np.square(y[:, None] - np.c_[2 * x + 1, -2 * x - 1])) / np.sqrt(2 * np.pi)
        truth = -2 * np.log(lines.mean(1)).sum() + 7 * np.log(60)
        assert truth - 40 < chosen.best.score < truth


@pytest.mark.published
def test_gamma_components_have_no_absurd_winner(x64):
    result = jaxem.fit(
        jaxem.Mixture(3, jaxem.Gamma()), np.random.default_rng(1).gamma(2, 1, 60), key=KEY, n_restarts=16, max_steps=200
    )
    status = np.asarray(result.restarts.status)
    assert (status == Status.DEGENERATE).any() and int(result.status) != Status.DEGENERATE
    assert -85 < float(result.loglik) < -75 and float(result.params["components"]["shape"].max()) < 100


def test_a_factor_of_one_column_alone(x64):
    """A Heywood case: on its way to zero the noise of a column is small where its factor tells of nothing else."""
    model = jaxem.FactorAnalysis(1)
    params = {"mean": jnp.zeros(4), "loadings": jnp.array([[0.9993], [0.4], [0.3], [0.5]])}
    own = params | {"noise": jnp.array([0.0014, 0.84, 0.91, 0.75])}
    assert model.degenerate(own)
    shared = {"mean": jnp.zeros(4), "loadings": jnp.full((4, 1), 0.9993), "noise": jnp.full(4, 0.0014)}
    assert not model.degenerate(shared)  # four precise measurements of one thing
