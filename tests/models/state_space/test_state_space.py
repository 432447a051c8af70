"""State space models: statsmodels' filter and smoother, the Nile, what is known or missing, what a user asks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import DATA

import jaxem
from jaxem import constraints
from jaxem.latents import kalman

nan = np.nan


def nile():
    return np.loadtxt(DATA / "Nile.csv", skiprows=1)


def general(rng, k=3, d=2, p=1, noise="full"):
    """Parameters of a model of which nothing is special but that its state noise is singular."""
    square = lambda n: (lambda a: a @ a.T / n + np.eye(n) / 2)(rng.normal(size=(n, n)))  # noqa: E731
    push = rng.normal(size=(k, 1))
    return {
        "initial_mean": rng.normal(size=k),
        "initial_covariance": square(k),
        "transition": rng.normal(size=(k, k)) / 2,
        "transition_input": rng.normal(size=(k, p)),
        "state_noise": push @ push.T,
        "observation": rng.normal(size=(d, k)),
        "observation_input": rng.normal(size=(d, p)),
        "observation_noise": square(d) if noise == "full" else rng.uniform(0.5, 2, d),
    }


def with_gaps(rng, n_steps, d=2, p=1):
    y = 2 * rng.normal(size=(n_steps, d))
    y[rng.random(y.shape) < 0.2] = nan
    y[3] = nan
    return {"y": y, "inputs": rng.normal(size=(n_steps, p))}


def statsmodels_results(params, data, diffuse=False):
    mlemodel = pytest.importorskip("statsmodels.tsa.statespace.mlemodel")
    y, inputs = data["y"], data["inputs"]
    k = len(params["transition"])
    model = mlemodel.MLEModel(y, k_states=k, k_posdef=k)
    model["design"], model["transition"], model["selection"] = params["observation"], params["transition"], np.eye(k)
    model["obs_cov"], model["state_cov"] = params["observation_noise"], params["state_noise"]
    model["obs_intercept"] = params["observation_input"] @ inputs.T
    model["state_intercept"] = params["transition_input"] @ np.roll(inputs, -1, 0).T
    if diffuse:
        model.ssm.initialize_diffuse()
    else:
        model.ssm.initialize_known(params["initial_mean"], params["initial_covariance"])
    return model.ssm.smooth()


def answers(model, params, data):
    """All that a model says of data, in one program."""

    @jax.jit
    def ask(params, data):
        chain, constant = model.chain(params, data)
        found = kalman.smooth(chain)
        before = kalman.filtered(chain)
        return found, before, kalman.lag_one(chain, found), found.log_mass + constant, constant

    return ask(params, model.validate(data))


def agree(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-8)


def test_filter_and_smoother_are_those_of_statsmodels(x64):
    rng = np.random.default_rng(0)
    params, data = general(rng), with_gaps(rng, 12)
    model = jaxem.StateSpace(3, observation_noise="full")
    short = {name: x[:8] for name, x in data.items()}
    # A second, shorter series: what pads it must change nothing.
    found, before, lagged, loglik, constant = answers(model, params, jaxem.sequences([data, short]))
    for i, part in enumerate((data, short)):
        wanted, t = statsmodels_results(params, part), len(part["y"])
        agree(loglik[i], wanted.llf)
        agree(found.mean[i, :t], wanted.smoothed_state.T)
        agree(found.covariance[i, :t], np.moveaxis(wanted.smoothed_state_cov, -1, 0))
        agree(before.mean[i, :t], wanted.filtered_state.T)
        agree(before.covariance[i, :t], np.moveaxis(wanted.filtered_state_cov, -1, 0))
        # Its autocovariance at t is that of t + 1 and t, the later state first.
        agree(lagged[i, : t - 1], np.moveaxis(wanted.smoothed_state_autocov, -1, 0)[: t - 1])
        agree(before.log_mass[i].sum() + constant[i], wanted.llf)


def test_exact_diffuse_is_that_of_statsmodels(x64):
    rng = np.random.default_rng(1)
    params, data = general(rng, k=2, noise="diag"), with_gaps(rng, 10)
    params["transition"], params["state_noise"] = np.array([[1.0, 1.0], [0.0, 0.9]]), np.diag([0.3, 0.0])
    params["observation"] = np.array([[1.0, 0.0], [0.5, 0.0]])  # two steps until both states are determined
    wanted = statsmodels_results({**params, "observation_noise": np.diag(params["observation_noise"])}, data, diffuse=True)
    model = jaxem.StateSpace(2, initial="diffuse")
    params = {name: x for name, x in params.items() if not name.startswith("initial")}
    found, before, _, loglik, _ = answers(model, params, data)
    agree(loglik[0], wanted.llf)
    agree(found.mean[0], wanted.smoothed_state.T)
    agree(found.covariance[0], np.moveaxis(wanted.smoothed_state_cov, -1, 0))
    d = wanted.nobs_diffuse
    assert 1 < d < 4 and np.isnan(before.mean[0, 0]).all()
    agree(before.mean[0, d:], wanted.filtered_state.T[d:])
    agree(before.covariance[0, d:], np.moveaxis(wanted.filtered_state_cov, -1, 0)[d:])


@pytest.mark.parametrize("diffuse", [False, True])
def test_exact_observations_cost_no_digits(x64, diffuse):
    """Observation variances of 1e-7, 1e-10 and 0, where evidence as a precision is useless."""
    rng = np.random.default_rng(6)
    params, data = general(rng, noise="diag"), with_gaps(rng, 12)
    params["state_noise"] = params["state_noise"] + 0.1 * np.eye(3)
    model = jaxem.StateSpace(3, initial="diffuse" if diffuse else "free")
    for variance in (1e-7, 1e-10, 0.0):
        params["observation_noise"] = np.array([variance, 0.7])
        wanted = statsmodels_results({**params, "observation_noise": np.diag(params["observation_noise"])}, data, diffuse)
        mine = {name: x for name, x in params.items() if not (diffuse and name.startswith("initial"))}
        found, _, _, loglik, _ = answers(model, mine, data)
        agree(loglik[0], wanted.llf)
        agree(found.mean[0], wanted.smoothed_state.T)
        agree(found.covariance[0], np.moveaxis(wanted.smoothed_state_cov, -1, 0))


@pytest.mark.parametrize("initial", [1.0, None])
def test_an_exact_observation_cannot_contradict_what_is_certain(initial):
    """A level that stands still and is seen without noise: whatever follows must repeat the first observation."""
    model = jaxem.LocalLevel(initial)
    series = jaxem.sequences([np.array([0.3, nan, 0.3, 0.3]), np.array([0.3, 0.3, 0.31, 0.3])])
    still = {**model.template(series), "state_noise": jnp.zeros(1), "observation_noise": jnp.zeros(1)}
    loglik = jax.jit(model.log_prob)(still, series)
    assert np.isfinite(loglik[0]) and loglik[1] == -np.inf


def test_nile(x64):
    stop = jaxem.Stop(loglik_rtol=None, param_rtol=1e-11)  # of variances in units of the data: about 0.1 and 1
    result = jaxem.fit(jaxem.LocalLevel(initial_variance=1e7), nile(), stop=stop, max_steps=20_000)
    assert result.converged
    assert abs(float(result.params["state_noise"][0]) - 1468.5003) < 1e-4
    assert abs(float(result.params["observation_noise"][0]) - 15099.6859) < 1e-4
    assert abs(float(result.loglik) + 641.58557835) < 1e-6
    assert (np.diff(result.history) > -1e-9).all()


def test_exact_diffuse_likelihood_of_the_nile(x64):
    """Durbin and Koopman 2012, section 2.2.5, as statsmodels and R have it: -633.46456."""
    model = jaxem.LocalLevel(None)
    params = {**model.template(nile()), "state_noise": jnp.array([1469.1764]), "observation_noise": jnp.array([15098.5183])}
    loglik, slope = jax.jit(jax.value_and_grad(lambda p: model.log_prob(p, nile()).sum()))(params)
    assert abs(float(loglik) + 633.46456) < 5e-6
    # The optimum: no relative change of a variance matters.
    assert max(abs(float(slope[name][0] * params[name][0])) for name in ("state_noise", "observation_noise")) < 1e-5


def test_a_level_is_diffuse_unless_told(x64):
    """The level's height costs nothing: Nile's likelihood, a million higher."""
    model = jaxem.LocalLevel()
    assert model.initial == "diffuse"
    params = {**model.template(nile()), "state_noise": jnp.array([1469.1764]), "observation_noise": jnp.array([15098.5183])}
    loglik = jax.jit(model.log_prob)(params, jaxem.sequences([nile(), nile() + 1e6]))
    np.testing.assert_allclose(loglik, -633.46456, atol=5e-6)


@pytest.mark.parametrize("initial", [None, pytest.param(1e7, marks=pytest.mark.published)])
def test_units_and_level_are_taken_from_the_data(initial):
    """Fits in other coordinates: float32 as float64 at a level of 1e6, the log-likelihood that of the data's own units."""
    y = (nile() if initial else 1e6 + nile()).astype(np.float32)
    found = []
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            data, standardize = jaxem.sequences([y.astype(dtype), y[:30].astype(dtype)]), dtype == np.float32
            model, stop = jaxem.LocalLevel(initial), jaxem.Stop(None)
            found.append(jaxem.fit(model, data, max_steps=20, stop=stop, standardize=standardize))
    low, high = found
    np.testing.assert_allclose(low.loglik, high.loglik, rtol=1e-5)
    for name in ("state_noise", "observation_noise"):
        np.testing.assert_allclose(low.params[name], high.params[name], rtol=1e-3)


def test_starts_are_about_the_mean_and_what_inputs_explain(x64):
    """The loadings of a factor whose series lie far from zero, and an intercept by an input of ones."""
    rng = np.random.default_rng(0)
    factor = np.cumsum(rng.normal(size=200)) / 5
    load, level = np.array([1.0, -1.0, 0.5]), np.array([50.0, 60.0, 70.0])
    y = level + factor[:, None] * load + 0.1 * rng.normal(size=(200, 3))
    model = jaxem.DynamicFactor(1)
    for data in (y, {"y": y, "inputs": np.ones(200)}):
        start = model.initialize(None, model.validate(data), np.ones(1))
        found = np.asarray(start["observation"])[:, 0]
        assert abs(found @ load) / np.linalg.norm(found) / np.linalg.norm(load) > 0.999
        if "observation_input" in start:
            np.testing.assert_allclose(start["observation_input"][:, 0], y.mean(0), rtol=1e-9)


def test_what_data_do_not_determine_is_unbounded(x64):
    """One observation of a level with a slope: the level there is known, all else may lie anywhere."""
    model, y = jaxem.LocalLinearTrend(), np.array([nan, 5.0, nan, nan])
    params = {**model.template(y), "state_noise": jnp.array([0.1, 0.01]), "observation_noise": jnp.ones(1)}

    @jax.jit
    def ask(y):
        past = model.filter(params, y), model.predict(params, y), model.posterior(params, y)
        return model.forecast(params, y, 2), *past

    ahead, filtered, fitted, states = ask(jnp.asarray(y))
    for path in (ahead.observations, ahead.states, filtered):
        low, high = path.interval()
        assert (low == -np.inf).all() and (high == np.inf).all() and np.isnan(path.mean).all() and (path.std == np.inf).all()
    known = np.array([False, True, False, False])
    np.testing.assert_array_equal(np.isfinite(fitted.std[:, 0]), known)
    np.testing.assert_array_equal(np.isfinite(states.std), np.c_[known, np.zeros(4, bool)])
    np.testing.assert_allclose([fitted.mean[1, 0], fitted.std[1, 0]], [5, 1], rtol=1e-9)
    # The limit of first states that are ever less known, where there is one.
    y = jnp.array([nan, 5.0, nan, 6.0])
    wide = {**params, "initial_mean": jnp.zeros(2), "initial_covariance": 1e9 * jnp.eye(2)}
    vague = jax.jit(lambda y: jaxem.LocalLinearTrend(1e9).forecast(wide, y, 2))(y)
    exact = ask(y)[0]
    np.testing.assert_allclose(exact.observations.std, vague.observations.std, rtol=1e-5)
    np.testing.assert_allclose(exact.states.mean, vague.states.mean, rtol=1e-5)


def test_diffuse_series_are_drawn_like_those_of_data(x64):
    model = jaxem.LocalLevel()
    params = {**model.template(nile()), "state_noise": jnp.array([1469.0]), "observation_noise": jnp.array([15098.0])}
    y = np.where(np.arange(100) % 9 == 0, nan, nile())
    drawn = np.asarray(model.sample_like(jax.random.key(0), params, y).x)[0, :, 0]
    assert (np.isnan(drawn) == np.isnan(y)).all() and abs(drawn[1] - y[1]) < 5 * np.sqrt(2 * 15098 + 1469)


def test_sums_of_moments_are_written_out(x64):
    """Sums of E (x_t - x_{t-1})^2 and E (y_t - x_t)^2 by Rauch, Tung and Striebel's smoother in NumPy."""
    y, q, h, initial = nile(), 900.0, 2e4, 1e7
    n = len(y)
    mean, variance, predicted, now = np.zeros(n), np.zeros(n), np.zeros(n), (0.0, initial)
    for t in range(n):
        predicted[t] = now[1]
        gain = now[1] / (now[1] + h)
        mean[t], variance[t] = now[0] + gain * (y[t] - now[0]), (1 - gain) * now[1]
        now = mean[t], variance[t] + q
    m, v, steps = mean.copy(), variance.copy(), 0.0
    for t in range(n - 2, -1, -1):
        back = variance[t] / predicted[t + 1]
        m[t] = mean[t] + back * (m[t + 1] - mean[t])
        v[t] = variance[t] + back**2 * (v[t + 1] - predicted[t + 1])
        steps += (m[t + 1] - m[t]) ** 2 + v[t + 1] + v[t] - 2 * back * v[t + 1]
    model = jaxem.LocalLevel(initial_variance=1e7)
    params = {**model.template(y), "state_noise": jnp.array([q]), "observation_noise": jnp.array([h])}
    _, stats = jax.jit(model.centered(params).e_step)(params, jaxem.sequences([y]), jnp.ones(1), jaxem.Rows())
    np.testing.assert_allclose(stats["state"]["square"], [steps], rtol=1e-10)
    np.testing.assert_allclose(stats["observation"]["square"], [((y - m) ** 2 + v).sum()], rtol=1e-10)
    np.testing.assert_allclose([stats["state"]["log"][0], stats["observation"]["log"][0]], [99, 100], rtol=1e-12)


def test_forecasts_fitted_values_and_draws(x64):
    rng = np.random.default_rng(3)
    params, data = general(rng), with_gaps(rng, 15)
    model = jaxem.StateSpace(3, observation_noise="full")
    params["state_noise"] = params["state_noise"] + 0.1 * np.eye(3)
    # A forecast is what the smoother says of missing steps at the end.
    gone = {
        "y": np.concatenate([data["y"], np.full((4, 2), nan)]),
        "inputs": np.concatenate([data["inputs"], rng.normal(size=(4, 1))]),
    }
    longer = jaxem.sequences([gone])

    @jax.jit
    def ask(params, data, longer, inputs):
        one = jax.tree.map(lambda x: x[0], data.x)
        ahead = model.forecast(params, one, 4, inputs=inputs)
        draws = model.sample_posterior(jax.random.key(0), params, one, 4000)
        alike = model.sample_like(jax.random.key(1), params, longer)
        past = model.posterior(params, one), model.lag_one(params, one), model.filter(params, one)
        return ahead, draws, alike, past, model.posterior(params, longer), model.predict(params, longer)

    found = ask(params, model.validate(data), longer, gone["inputs"][15:])
    ahead, draws, y, (smoothed, together, filtered), path, fitted = found
    np.testing.assert_allclose(ahead.states.mean, path.mean[0, 15:], rtol=1e-8)
    np.testing.assert_allclose(ahead.states.covariance, path.covariance[0, 15:], rtol=1e-8)
    np.testing.assert_allclose(ahead.observations.mean, fitted.mean[0, 15:], rtol=1e-8)
    np.testing.assert_allclose(
        ahead.observations.covariance, fitted.covariance[0, 15:] + params["observation_noise"], rtol=1e-8
    )
    low, high = ahead.observations.interval(0.95)
    np.testing.assert_allclose((high - low) / ahead.observations.std, 2 * 1.959963984540054, rtol=1e-6)
    np.testing.assert_allclose(filtered.mean[-1], smoothed.mean[-1], rtol=1e-8)

    draws = np.asarray(draws)
    assert draws.shape == (4000, 15, 3)
    z = (draws.mean(0) - smoothed.mean) / (smoothed.std / np.sqrt(4000))
    assert np.abs(z).max() < 4.5
    np.testing.assert_allclose(np.cov(draws[:, 6].T, draws[:, 5].T)[:3, 3:], together[5], atol=0.1)
    assert np.isnan(y.x["y"][0, 15:]).all() and np.isfinite(y.x["y"][0, 0]).all()
    with pytest.raises(NotImplementedError, match="diffuse"):
        jaxem.LocalLevel(None).sample(jax.random.key(0), params, 1)


def test_small_and_singular_noise_in_float32():
    """State noise of 1e-8 and of 0, where precisions overflow float32: as in float64, whatever the level."""
    rng = np.random.default_rng(4)
    y = (900 + rng.normal(size=200)).astype(np.float32)
    found = {}
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            model = jaxem.LocalLevel(None)
            template = model.template(y.astype(dtype))
            ask = jax.jit(lambda p, y, model=model: model.centered(p).e_step(p, y, jnp.ones(1, y.x.dtype), jaxem.Rows()))
            for q in (1e-8, 0.0):
                params = {**template, "state_noise": jnp.array([q], dtype), "observation_noise": jnp.ones(1, dtype)}
                found[dtype, q] = jax.tree.map(np.asarray, ask(params, model.validate(y.astype(dtype))))
    for q in (1e-8, 0.0):
        (loglik, stats), (wanted, exact) = found[np.float32, q], found[np.float64, q]
        assert loglik.dtype == np.float32
        np.testing.assert_allclose(loglik, wanted, rtol=1e-5)
        np.testing.assert_allclose(stats["state"]["square"], exact["state"]["square"], rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(stats["observation"]["square"], exact["observation"]["square"], rtol=1e-4)


def test_many_series_restarts_and_float32():
    model = jaxem.LocalLevel(10.0)
    truth = {**model.template(np.zeros(2)), "state_noise": jnp.array([0.5]), "observation_noise": jnp.array([2.0])}
    y = model.sample(jax.random.key(0), truth, 40, 60)
    result = jaxem.fit(model, y, key=jax.random.key(1), n_restarts=3)
    assert {x.dtype for x in jax.tree.leaves(result.params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(result.params["state_noise"], [0.5], rtol=0.25)
    np.testing.assert_allclose(result.params["observation_noise"], [2.0], rtol=0.15)
    np.testing.assert_allclose(result.restarts.loglik, result.loglik, rtol=1e-4)


def test_inputs_of_missing_steps_are_kept(x64):
    data = jaxem.sequences([{"y": np.array([1.0, nan, 3.0]), "inputs": np.array([4.0, 5.0, 6.0])}])
    np.testing.assert_array_equal(data.x["inputs"], [[4, 5, 6]])
    np.testing.assert_array_equal(data.observed, [[True, False, True]])
    kept = jaxem.StateSpace(1).validate(data).x
    np.testing.assert_array_equal(kept["inputs"][0, :, 0], [4, 5, 6])
    np.testing.assert_array_equal(kept["y"][0, :, 0], [1, nan, 3])


def test_partly_known_sets_round_trip(x64):
    known = np.array([[nan, nan, 0.0], [nan, nan, 0.0], [0.0, 0.0, 3.0]])
    x = jnp.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 3.0]])
    for whole, fixed, value in (
        (constraints.SPD(), known, x),
        (constraints.Positive(), np.array([nan, 0.0]), jnp.array([2.0, 0.0])),
        (constraints.Real(), np.array([nan, 7.0]), jnp.array([-1.0, 7.0])),
    ):
        part = constraints.Partly(whole, fixed)
        np.testing.assert_allclose(part.from_free(part.to_free(value), value), value, rtol=1e-12)
        moved = np.asarray(part.from_free(part.to_free(value) + 0.3, value))
        np.testing.assert_array_equal(moved[~np.isnan(fixed)], fixed[~np.isnan(fixed)])
        assert part.violation(moved) is None and part.violation(moved + 1) is not None
        assert part.edge(value, jnp.zeros(value.shape, bool)).sum() == (3 if value.ndim == 2 else 1)


BAD = {
    "data must hold at least one step; got none": (jaxem.LocalLevel(), np.zeros(0)),
    "at least 2 times": (jaxem.LocalLevel(), np.zeros((3, 1))[:1]),
    r"fixed\['observation'\] must have shape \(2, 1\); got \(1, 1\)": (jaxem.LocalLevel(), np.zeros((5, 2))),
    "got inf in 1 places": (jaxem.LocalLevel(), np.array([1.0, np.inf, 2.0])),
    "only missing ones": (jaxem.LocalLevel(), np.full(4, nan)),
    "data inputs must be finite": (jaxem.StateSpace(1), {"y": np.ones(3), "inputs": np.array([1.0, nan, 2.0])}),
    "observation_noise must be one of full, diag; got 'tied'": (
        lambda: jaxem.StateSpace(1, observation_noise="tied"),
        np.ones(4),
    ),
    "initial must be one of free, diffuse": (lambda: jaxem.StateSpace(1, initial="known"), np.ones(4)),
    "fixed must be for parameters, which are .* got \\['level'\\]": (jaxem.StateSpace(1, fixed={"level": 1.0}), np.ones(4)),
    "no noise in row 0: then that row of transition": (
        jaxem.StateSpace(2, fixed={"state_noise": np.diag([0.0, 1.0])}),
        np.ones(4),
    ),
    "the block of row 0 is fixed in part": (
        jaxem.StateSpace(2, fixed={"state_noise": np.array([[1.0, nan], [nan, nan]])}),
        np.ones(4),
    ),
    "must be positive semidefinite": (
        jaxem.StateSpace(2, fixed={"state_noise": np.array([[1.0, 2.0], [2.0, 1.0]])}),
        np.ones(4),
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    model, data = BAD[message]
    with pytest.raises(ValueError, match=message):
        jaxem.fit(model() if callable(model) else model, data)


def test_bad_init_and_inputs_to_come(x64):
    model = jaxem.LocalLevel(initial_variance=1e7)
    params = jax.tree.map(np.asarray, model.template(np.zeros(5)))
    driven = {"y": np.ones(4), "inputs": np.ones(4)}
    with pytest.raises(ValueError, match="transition must be equal to what is fixed"):
        jaxem.fit(model, np.arange(5.0), init={**params, "transition": np.full((1, 1), 0.5)})
    with pytest.raises(ValueError, match=r"inputs to come must have shape \(1, 3, 1\); got None"):
        model.forecast(model.template(driven), driven, 3)
    with pytest.raises(NotImplementedError, match="give inputs, or use sample_like"):
        model.sample(jax.random.key(0), model.template(driven), 2)


# --- free parameters -------------------------------------------------------------------------------
def test_choices_of_the_states_coordinates_are_no_free_parameters(x64):
    """Nothing fixed: K^2 of the entries; unit state noise: rotations; a triangular observation beside it: signs alone."""
    data = jaxem.sequences(list(np.random.default_rng(0).normal(size=(80, 6, 3))))
    unit, triangle = {"state_noise": np.eye(2)}, {"observation": np.array([[nan, 0], [nan, nan], [nan, nan]])}
    entries = 4 + 6 + 3 + 3 + 2 + 3  # transition, observation, two noises, mean and covariance of the first state
    free = jaxem.StateSpace(2)
    assert free.n_free_params(data) == entries - 4
    assert jaxem.StateSpace(2, fixed=unit).n_free_params(data) == entries - 3 - 1
    assert jaxem.StateSpace(2, fixed={"state_noise": 1.0}).n_free_params(data) == entries - 3 - 1
    assert jaxem.StateSpace(2, fixed=unit | triangle).n_free_params(data) == entries - 3 - 1
    assert jaxem.StateSpace(2, fixed=unit, initial="diffuse").n_free_params(data) == entries - 3 - 5 - 1
    assert jaxem.StateSpace(2, state_noise="diag").n_free_params(data) == entries - 1 - 2 - 1
    assert jaxem.LocalLevel().n_free_params(nile()) == 2
    # As many as log-densities of series know directions.
    vector, back = constraints.chart(free.constraints, free.template(data))
    vector = vector + 0.3 * np.random.default_rng(1).normal(size=vector.shape)
    jacobian = jax.jit(jax.jacfwd(lambda v: free.log_prob(back(v), data)))(vector)
    assert np.linalg.matrix_rank(np.asarray(jacobian), 1e-8 * np.abs(jacobian).max()) == entries - 4


def test_a_series_of_zeros_has_a_start(dtype):
    start = jaxem.StateSpace(1).initialize(None, jaxem.StateSpace(1).validate(np.zeros((9, 3), dtype)), np.ones(1, dtype))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(start))
