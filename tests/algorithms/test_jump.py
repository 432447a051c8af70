"""Accelerators reach the optima of plain EM in far fewer maps, and never lower the objective."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import DATA, read

import jaxem
from jaxem import Status
from jaxem import constraints as sets
from jaxem.constraints import Positive, UnitInterval

ACCELERATORS = {
    "S1": jaxem.Squarem(1),
    "S2": jaxem.Squarem(2),
    "S3": jaxem.Squarem(),
    "quasi-Newton": jaxem.QuasiNewton(),
    "Anderson": jaxem.Anderson(),
    "conjugate gradient": jaxem.ConjugateGradient(),
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def rises(history) -> bool:
    """Never falls, but for the rounding of sums of this size."""
    history = np.asarray(history)
    return bool((np.diff(history) >= -1e-13 * np.abs(history).max()).all())


# --- death notices (Hasselblad 1969), in the three parameters of the literature -----------------
def natural(params):
    w, rates = params["weight"], params["rates"]
    return {"first": jnp.log(w), "second": jnp.log1p(-w), "log_rate": jnp.log(rates), "rate": -rates}


def two_poissons(eta, x):
    base = jnp.stack([eta["first"], eta["second"]])[:, None] - jax.scipy.special.gammaln(x + 1)
    return jaxem.numerics.lse(base + eta["log_rate"][:, None] * x + eta["rate"][:, None], 0)


def m_step(stats, params):
    del params
    weight = stats["first"] / (stats["first"] + stats["second"])
    return {"weight": weight, "rates": stats["log_rate"] / stats["rate"]}


DEATHS = jaxem.log_marginal(
    natural=natural, log_marginal=two_poissons, m_step=m_step, init={"weight": 0.5, "rates": np.ones(2)},
    constraints={"weight": UnitInterval(), "rates": Positive()},
)  # fmt: skip


@pytest.mark.parametrize(
    "algorithm, maps",
    [(jaxem.EM(), (2_312, 2_586, 2_880)), (jaxem.Squarem(), (70, 95, 95)), (jaxem.QuasiNewton(), (70, 95, 95))]
    + [(ACCELERATORS[name], (110, 110, 110)) for name in ("S1", "S2", "Anderson", "conjugate gradient")],
)
def test_death_notices(algorithm, maps):
    x, count = read("mortality_poismix.csv").T
    stop = jaxem.Stop(loglik_rtol=None, param_atol=1e-8)
    for (w, a, b), most in zip([(0.4, 1, 2), (0.3, 1, 2.5), (0.5, 1, 5)], maps, strict=True):
        init = {"weight": w, "rates": np.array([a, b], float)}
        result = jaxem.fit(DEATHS, x, weight=count, init=init, algorithm=algorithm, stop=stop)
        assert bool(result.converged) and int(result.n_steps) <= most
        assert float(result.loglik) == pytest.approx(-1989.945859883, abs=2e-9)
        assert rises(result.history)
        if isinstance(algorithm, jaxem.EM):
            assert int(result.n_steps) == most  # 2 311 maps after the first, as published


def test_the_packaged_mixture_needs_no_more_maps():
    x, count = read("mortality_poismix.csv").T
    init = {"weights": np.array([0.4, 0.6]), "components": {"rate": np.array([1.0, 2.0])}}
    stop = jaxem.Stop(loglik_rtol=None, param_atol=1e-8)
    model = jaxem.Mixture(2, jaxem.Poisson())
    result = jaxem.fit(model, x.astype(int), weight=count, init=init, algorithm=jaxem.Squarem(), stop=stop)
    assert int(result.n_steps) <= 70 and float(result.loglik) == pytest.approx(-1989.945859883, abs=2e-9)


# --- constrained factor analysis (Rubin and Thayer 1982) -----------------------------------------
def rubin_thayer():
    given = json.loads((DATA / "rubin_thayer.json").read_text())
    correlations = np.eye(9)
    correlations[np.tril_indices(9, -1)] = given["correlations_lower_triangle_by_row"]
    correlations = np.tril(correlations) + np.tril(correlations, -1).T
    free = np.ones((9, 4), bool)
    free[:4, 3] = free[4:, 2] = False
    model = jaxem.FactorAnalysis(4, pattern=free, floor=0.0)
    start = {
        "loadings": np.array(given["start_loadings_factor_by_variable"]).T,
        "mean": np.zeros(9),
        "noise": np.full(9, given["start_uniqueness"]),
    }
    return model, start, *jaxem.rows_of_covariance(correlations, given["n"])


@pytest.mark.published
def test_rubin_and_thayer():
    model, start, data, weight = rubin_thayer()
    stop = jaxem.Stop(loglik_rtol=None, param_atol=1e-8)
    constant = weight.sum() * 9 / 2 * np.log(2 * np.pi)  # which their convention leaves out
    plateau = jaxem.fit(model, data, weight=weight, init=start, stop=stop, max_steps=1_000)
    assert float(plateau.loglik) + constant == pytest.approx(-328.1297, abs=5e-5)
    maps = {}
    algorithms = {"EM": jaxem.EM()} | {k: ACCELERATORS[k] for k in ("S3", "quasi-Newton", "conjugate gradient")}
    for name, algorithm in algorithms.items():
        result = jaxem.fit(model, data, weight=weight, init=start, algorithm=algorithm, stop=stop, max_steps=20_000)
        assert bool(result.converged) and float(result.loglik) + constant == pytest.approx(-327.69062848, abs=1e-8)
        assert rises(result.history)
        maps[name] = int(result.n_steps)
    assert abs(maps["EM"] - 14_663) <= 5
    assert maps["S3"] <= 1_100 and min(maps.values()) <= 735


# --- slow problems -------------------------------------------------------------------------------
def slow_problems():
    rng = np.random.default_rng(3)
    near = np.concatenate([rng.normal(0, 1, 300), rng.normal(1.8, 1, 300)])[:, None]
    start = {
        "weights": np.array([0.5, 0.5]),
        "components": {"mean": np.array([[-0.5], [1.5]]), "covariance": np.ones((2, 1, 1))},
    }
    mixture = (jaxem.GaussianMixture(2), near, start)
    state = np.cumsum(rng.random(400) < 0.3) % 2
    counts = rng.poisson(np.where(state, 9.0, 6.0))
    start = {
        "initial": np.array([0.5, 0.5]), "transition": np.array([[0.8, 0.2], [0.3, 0.7]]),
        "emission": {"rate": np.array([5.0, 8.0])},
    }  # fmt: skip
    return {"mixture": mixture, "chain": (jaxem.HMM(2, jaxem.Poisson()), jaxem.sequences([counts]), start)}


@pytest.mark.published
@pytest.mark.parametrize("name", ["mixture", "chain"])
def test_five_times_fewer_maps(name):
    model, data, start = slow_problems()[name]
    stop = jaxem.Stop(loglik_rtol=None, param_rtol=1e-8)
    plain = jaxem.fit(model, data, init=start, stop=stop, max_steps=100_000)
    fast = jaxem.fit(model, data, init=start, stop=stop, algorithm=jaxem.Squarem())
    assert bool(plain.converged) and bool(fast.converged) and rises(fast.history)
    assert float(fast.loglik) >= float(plain.loglik) - 1e-6
    assert int(plain.n_steps) >= 5 * int(fast.n_steps)


# --- two hundred random problems, side by side in one vmap ---------------------------------------
@pytest.fixture(scope="module")
def random_problems():
    rng = np.random.default_rng(0)

    def draw():
        mean, spread, z = rng.normal(size=2) * 2, rng.uniform(0.5, 1.5, 2), rng.integers(2, size=50)
        return (mean[z] + spread[z] * rng.normal(size=50))[:, None]

    with jax.enable_x64(True):
        data, keys = jnp.asarray(np.stack([draw() for _ in range(200)])), jax.random.split(jax.random.key(1), 200)
        return data, keys, run_all(data, keys, jaxem.EM())


MODEL = jaxem.GaussianMixture(2, floor=1e-3)


def run_all(data, keys, algorithm):
    stop = jaxem.Stop(loglik_rtol=None, param_rtol=1e-8)

    def one(key, x):
        return jaxem.fit(MODEL, x, key=key, algorithm=algorithm, stop=stop, max_steps=3_000)

    jax.config.update("jax_disable_most_optimizations", False)  # this one does take its time in the loop
    try:
        return jax.block_until_ready(jax.jit(jax.vmap(one))(keys, data))
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize("name", ["S3", "quasi-Newton", "Anderson", "conjugate gradient"])
@pytest.mark.published
def test_random_problems(random_problems, name):
    data, keys, plain = random_problems
    fast = run_all(data, keys, ACCELERATORS[name])
    assert all(rises(history[np.isfinite(history)]) for history in np.asarray(fast.history))
    assert np.isin(np.asarray(fast.status), (Status.CONVERGED, Status.DEGENERATE, Status.MAX_STEPS)).all()
    assert np.sum(np.asarray(fast.status) == Status.MAX_STEPS) <= np.sum(np.asarray(plain.status) == Status.MAX_STEPS)
    assert float(jnp.median(fast.n_steps)) < float(jnp.median(plain.n_steps)) / 2
    reached = np.asarray(fast.objective >= plain.objective - 1e-6)
    assert reached.sum() >= 190

    def slope(params, x):
        free = sets.to_free(MODEL.constraints, params)
        loglik = jax.grad(lambda f: MODEL.log_prob(sets.from_free(MODEL.constraints, f, params), x).sum())(free)
        return jnp.max(jnp.abs(jax.flatten_util.ravel_pytree(loglik)[0]))

    # Another optimum, not a halt on the way; a restart out of steps is neither.
    elsewhere = np.flatnonzero(~reached & (np.asarray(fast.status) == Status.CONVERGED))
    for i in elsewhere:
        assert float(slope(jax.tree.map(lambda leaf, i=i: leaf[i], fast.params), data[i])) < 1e-4
