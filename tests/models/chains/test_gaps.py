"""What a chain does not see: inputs that no model draws, steps that are missing, and the padding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import jaxem

KEY = jax.random.key(0)
nan = np.nan


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


MOVES = {"initial": np.array([0.5, 0.5]), "transition": np.array([[0.9, 0.1], [0.2, 0.8]])}
ONE = {"initial": np.ones(1), "transition": np.ones((1, 1))}
NORMAL = jaxem.HMM(2, jaxem.Gaussian("diag"))
NORMALS = {**MOVES, "emission": {"mean": np.array([[0.0], [3.0]]), "covariance": np.ones((2, 1))}}
LINE = {**ONE, "emission": {"intercept": np.array([3.0]), "coefficients": np.array([[1.0]]), "variance": np.array([0.1])}}
DRIVEN = {"y": np.full(30, 23.0), "inputs": np.full((30, 1), 20.0)}


def drawn_ahead(model, params, data, n_steps, **options):
    """A forecast by 4000 paths, in one program."""
    return jax.jit(lambda key: model.forecast(key, params, data, n_steps, 4000, **options))(KEY)


def autoregression(*coefficients, variance=0.5):
    own = {"intercept": np.array([1.0]), "coefficients": np.array([coefficients]), "variance": np.array([variance])}
    return jaxem.HMM(1, jaxem.AutoRegression(order=len(coefficients))), {**ONE, "emission": own}


# --- inputs ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("parts", [None, 2])
def test_a_regression_forecasts_along_the_inputs_to_come(parts):
    family, params = jaxem.LinearRegression(), LINE
    if parts:
        own = jax.tree.map(lambda x: np.repeat(x, parts, 0), LINE["emission"])
        family, params = (
            jaxem.FamilyMixture(parts, family),
            {**ONE, "emission": {"weights": np.full((1, parts), 0.5), "parts": own}},
        )
    model = jaxem.HMM(1, family)
    ahead = drawn_ahead(model, params, DRIVEN, 2, inputs=np.array([[20.0], [10.0]]))
    np.testing.assert_allclose(ahead.mean["y"], [23, 13], atol=5 * (0.1 / 4000) ** 0.5)
    np.testing.assert_array_equal(ahead.mean["inputs"], [[20], [10]])
    alike = jax.jit(lambda key: model.sample_like(key, params, DRIVEN))(KEY)
    np.testing.assert_array_equal(alike.x["inputs"][0], DRIVEN["inputs"])
    assert abs(alike.x["y"].mean() - 23) < 5 * (0.1 / 30) ** 0.5


def test_inputs_to_come_are_asked_for():
    model, plain = jaxem.HMM(1, jaxem.LinearRegression()), jaxem.HMM(2, jaxem.Poisson())
    with pytest.raises(ValueError, match=r"inputs to come must have shape \(1, 2, 1\); got None"):
        model.forecast(KEY, LINE, DRIVEN, 2)
    with pytest.raises(ValueError, match=r"inputs to come must have shape \(1, 2, 0\); got \(2, 1\)"):
        plain.forecast(KEY, {**MOVES, "emission": {"rate": np.ones(2)}}, np.ones(5), 2, inputs=np.ones((2, 1)))


def test_mixtures_of_regressions_are_drawn_for_the_inputs_of_data():
    params = {"weights": np.ones(1), "components": LINE["emission"]}
    drawn = jaxem.Mixture(1, jaxem.LinearRegression()).sample_like(KEY, params, DRIVEN)
    np.testing.assert_array_equal(drawn["inputs"], DRIVEN["inputs"])


@pytest.mark.published
def test_parametric_bootstrap_keeps_inputs_and_past():
    """Standard errors of a regression are those of least squares; of an autoregression far from its mean they are small."""
    rng = np.random.default_rng(0)
    inputs = 10 + rng.normal(size=(60, 1))
    data = {"y": 3 + inputs[:, 0] + 0.3 * rng.normal(size=60), "inputs": inputs}
    design = np.c_[inputs, np.ones(60)]
    line, (rest,), *_ = np.linalg.lstsq(design, data["y"])
    wanted = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * rest / 60)
    own = {"intercept": line[1:], "coefficients": line[None, :1], "variance": np.array([rest / 60])}
    model = jaxem.HMM(1, jaxem.LinearRegression())
    found = jaxem.bootstrap(model, {**ONE, "emission": own}, data, key=KEY, n_samples=200, method="parametric")
    errors = found.standard_errors()["emission"]
    np.testing.assert_allclose([errors["coefficients"][0, 0], errors["intercept"][0]], wanted, rtol=0.2)

    model, params = autoregression(0.5, variance=0.01)
    x = [100.0]
    for e in rng.normal(size=20):
        x.append(1 + 0.5 * x[-1] + 0.1 * e)
    x = np.array(x)
    x[15] = nan  # which stays missing
    found = jaxem.bootstrap(model, params, x, key=KEY, n_samples=100, method="parametric")
    seen = x[:-1][~np.isnan(x[1:] + x[:-1])]
    wanted = 0.1 / np.sqrt(np.square(seen - seen.mean()).sum())
    np.testing.assert_allclose(found.standard_errors()["emission"]["coefficients"][0, 0], wanted, rtol=0.3)


# --- gaps ------------------------------------------------------------------------------------------
def normal_of_series(coefficients, variance, given, n_steps):
    """Mean and covariance of the steps after the first P, by the linear system that they solve."""
    p, m = len(coefficients), n_steps - len(given)
    system, right = np.eye(m), np.full(m, 1.0)
    for t in range(m):
        for lag, c in enumerate(coefficients, 1):
            if t - lag >= 0:
                system[t, t - lag] = -c
            else:
                right[t] += c * given[p + t - lag]
    inverse = np.linalg.inv(system)
    return inverse @ right, variance * inverse @ inverse.T


def test_autoregressions_forecast_over_gaps():
    """Mean and spread of the next two steps given all that is seen, by the joint normal density of each series."""
    coefficients, variance = (0.6, 0.3), 0.5
    parts = [np.array(x) for x in ([9.0, 8, 0, 4, nan], [9.0, 8, 0, nan, 4, nan, 5], [9.0, 8, nan, nan, 3], [9.0, 8, 1, 2])]
    model, params = autoregression(*coefficients, variance=variance)
    ahead = drawn_ahead(model, params, jaxem.sequences(parts), 2)
    for x, own_mean, own_std in zip(parts, ahead.mean, ahead.std):
        mean, covariance = normal_of_series(coefficients, variance, x[:2], len(x) + 2)
        seen = np.r_[~np.isnan(x[2:]), False, False]
        pull = covariance[-2:][:, seen] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
        wanted = mean[-2:] + pull @ (x[2:][seen[:-2]] - mean[seen])
        spread = np.sqrt(np.diag(covariance[-2:, -2:] - pull @ covariance[seen][:, -2:]))
        np.testing.assert_array_less(np.abs(own_mean - wanted), 5 * spread / 4000**0.5)
        np.testing.assert_allclose(own_std, spread, rtol=0.08)


@pytest.mark.parametrize("order", [1, 2])
def test_steps_with_a_gap_in_their_past_count_as_missing(order):
    """log_prob and posterior by the sum over all paths; `update` is the filter, window by window."""
    rng = np.random.default_rng(order)
    x = rng.normal(size=8)
    x[4] = nan
    own = {"intercept": np.array([0.0, 2.0]), "coefficients": rng.normal(size=(2, order)) / 2, "variance": np.array([0.5, 1.0])}
    model, params = jaxem.HMM(2, jaxem.AutoRegression(order=order)), {**MOVES, "emission": own}
    lags = np.stack([x[order - lag : len(x) - lag] for lag in range(1, order + 1)], 1)
    scores = stats.norm.logpdf(x[order:, None], own["intercept"] + lags @ own["coefficients"].T, np.sqrt(own["variance"]))
    assert np.isnan(scores).any(1).sum() == order + 1
    scores = np.where(np.isnan(scores), 0, scores)
    paths = np.array(list(itertools.product(range(2), repeat=len(scores))))
    moves = np.log(MOVES["transition"])[paths[:, :-1], paths[:, 1:]].sum(1)
    joint = np.log(0.5) + moves + scores[range(len(scores)), paths].sum(1)
    total = logsumexp(joint)
    np.testing.assert_allclose(model.log_prob(params, x), [total], rtol=1e-12)
    np.testing.assert_allclose(model.posterior(params, x)[:, 1], np.exp(joint - total) @ paths, rtol=1e-9)
    belief, logs, update = None, [], jax.jit(model.update)
    for y, window in zip(x[order:], lags):
        belief, log_prob = update(params, belief, {"y": np.array([y]), "inputs": window[None]})
        logs.append(float(log_prob[0]))
    np.testing.assert_allclose(sum(logs), total, rtol=1e-12)
    np.testing.assert_allclose(belief, model.filter(params, x)[-1:], rtol=1e-9)


def test_a_missing_step_moves_the_online_filter_on():
    x = np.array([[0.1, 2.0], [nan, 1.0], [3.1, nan], [3.0, 0.5]])  # two series, time first
    wanted = NORMAL.filter(NORMALS, jaxem.sequences([x[:, :1], x[:, 1:]]))
    belief, update = None, jax.jit(NORMAL.update)
    for t, now in enumerate(x):
        belief, log_prob = update(NORMALS, belief, now[:, None])
        np.testing.assert_allclose(belief, wanted[:, t], rtol=1e-12)
        np.testing.assert_allclose(np.asarray(log_prob)[np.isnan(now)], 0, atol=1e-15)


REGIMES = {
    "transition": MOVES["transition"],
    "mean": np.array([0.0, 5.0]),
    "coefficients": np.array([0.5]),
    "variance": np.array(0.1),
}


def test_markov_autoregressions_forecast():
    """Regimes by matrix powers; the mean of the next step over both regimes and both of its lag's."""
    model = jaxem.MarkovAutoregression(2, order=1)
    x = np.array(jax.jit(lambda key: model.sample(key, REGIMES, 1, 20).x[0])(KEY))
    ahead, last = drawn_ahead(model, REGIMES, x, 3), np.asarray(model.filter(REGIMES, x))[-1]
    for h in range(3):
        np.testing.assert_allclose(ahead.states[h], last @ np.linalg.matrix_power(REGIMES["transition"], h + 1), rtol=1e-10)
    means = REGIMES["mean"] + 0.5 * (x[-1] - REGIMES["mean"][:, None])  # lag's regime first
    wanted = (last[:, None] * REGIMES["transition"] * means).sum()
    assert abs(float(ahead.mean[0]) - wanted) < 5 * float(ahead.std[0]) / 4000**0.5
    x[-1] = nan
    gone = drawn_ahead(model, REGIMES, x, 1)
    assert gone.states.shape == (1, 2) and np.isfinite(gone.samples).all()


# --- the padding -----------------------------------------------------------------------------------
PADDED = {
    "gaussian": (NORMAL, NORMALS, [np.array([[3.1], [nan], [3.3]]), np.full((6, 1), 3.0)], nan),
    "poisson": (
        jaxem.HMM(2, jaxem.Poisson()),
        {**MOVES, "emission": {"rate": np.array([1.0, 9.0])}},
        [[1.0, 2], [8.0] * 6],
        -1,
    ),
    "codes": (
        jaxem.HMM(2, jaxem.Categorical(3)),
        {**MOVES, "emission": {"probs": np.array([[0.5, 0.4, 0.1], [0.1, 0.2, 0.7]])}},
        [np.array([0, 1]), np.array([0, 2, 2, 1, 0, 1])],
        -1,
    ),
    "regimes": (jaxem.MarkovAutoregression(2, order=1), REGIMES, [np.array([1.0, nan, 2, 3]), np.arange(6.0)], nan),
}


@pytest.mark.parametrize("name", PADDED)
def test_nothing_is_said_of_the_padding(name):
    model, params, parts, absent = PADDED[name]
    data, given = jaxem.sequences([np.asarray(part) for part in parts]), int(name == "regimes")
    beyond = ~np.asarray(data.valid())[:, given:]

    @jax.jit
    def ask(params):
        states = model.predict(params, data), model.viterbi(params, data), model.sample_posterior(KEY, params, data, 3)
        return model.posterior(params, data), *states, model.sample_like(KEY, params, data)

    posterior, states, path, draws, drawn = jax.tree.map(np.asarray, ask(params))
    assert (posterior[beyond] == 0).all() and (states[~beyond] == posterior.argmax(-1)[~beyond]).all()
    for found in (states, path, *draws):
        assert ((found == -1) == beyond).all() and found.max() <= 1
    x = drawn.x.reshape(*data.shape, -1)[..., 0]
    unseen = ~np.asarray(data.seen())
    np.testing.assert_array_equal(x[unseen], absent)
    assert np.isfinite(x[~unseen]).all()
    # Accepted as data: checked, and inside jit.
    wanted = model.log_prob(params, model.validate(drawn))
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(jax.jit(model.log_prob)(params, jax.tree.map(jnp.asarray, drawn)), wanted, rtol=1e-12)
