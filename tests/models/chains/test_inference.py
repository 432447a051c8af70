"""What a user of chains asks for: missing steps, known transitions, labels, priors, forecasts, emissions of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxem
from jaxem.fitting import solve

NEVER = jaxem.Stop(loglik_rtol=None)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


POISSON = {
    "initial": np.array([0.6, 0.4]),
    "transition": np.array([[0.9, 0.1], [0.3, 0.7]]),
    "emission": {"rate": np.array([2.0, 9.0])},
}
MODEL = jaxem.HMM(2, jaxem.Poisson())


def drawn(lengths, seed=0, params=POISSON, model=MODEL):
    x = np.asarray(model.sample(jax.random.key(seed), jax.tree.map(jnp.asarray, params), len(lengths), max(lengths)).x)
    return [row[:n] for row, n in zip(x, lengths)]


def fitted(data, model=MODEL, init=POISSON, steps=8, **options):
    return jaxem.fit(model, data, init=init, max_steps=steps, stop=NEVER, **options)


def same(one, two, rtol=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), one.params, two.params)
    np.testing.assert_allclose(one.loglik, two.loglik, rtol=1e-11)


# --- missing steps -----------------------------------------------------------------------------
def test_missing_steps_are_summed_out():
    x = drawn([6])[0].copy()
    x[[2, 3]] = np.nan
    got = MODEL.log_prob(POISSON, x)[0]
    filled = np.tile(x, (1600, 1))  # with every pair of values that the two missing counts are likely to take
    filled[:, 2], filled[:, 3] = np.divmod(np.arange(1600), 40)
    total = np.exp(MODEL.log_prob(POISSON, jaxem.sequences(list(filled)))).sum()
    np.testing.assert_allclose(got, np.log(total), rtol=1e-9)
    assert np.isfinite(MODEL.posterior(POISSON, x)).all()


@pytest.mark.published
def test_what_is_not_there_contributes_nothing():
    """All-missing sequences, missing tails, garbage in the padding: the same parameters after eight steps."""
    parts = drawn([20, 7, 13])
    plain = fitted(jaxem.sequences(parts))
    nothing = np.full(9, np.nan)
    same(plain, fitted(jaxem.sequences([*parts, nothing])))
    same(plain, fitted(jaxem.sequences([np.r_[parts[0], nothing], *parts[1:]])))
    same(plain, fitted(jaxem.sequences(parts, round_to=32)))
    data = jaxem.sequences(parts)
    garbage = np.where(data.valid(), data.x, 1e30)
    jitted = jax.jit(lambda d: fitted(d))(jax.tree.map(jnp.asarray, jaxem.Sequences(garbage, data.length)))
    same(plain, jitted)
    gradient = jax.grad(lambda p: MODEL.log_prob(p, jaxem.Sequences(jnp.asarray(garbage), data.length)).sum())(POISSON)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_second_fit_compiles_nothing():
    """Other data, starts, transitions and lengths that round to the same."""
    parts, compiled = drawn([64, 5]), []
    for n, rate in ((33, 2.0), (40, 3.0), (64, 4.0)):
        init = {**POISSON, "transition": np.full((2, 2), 0.5), "emission": {"rate": np.array([rate, 9.0])}}
        fitted(jaxem.sequences([parts[0][:n], parts[1]], round_to=64), init=init, steps=n)
        compiled.append(solve.begin_jit._cache_size())
    assert len(set(compiled)) == 1


def test_missing_entries_of_a_product():
    """Entries that are NaN are summed out column by column, as a product of normals does by hand."""
    rng = np.random.default_rng(0)
    x = np.c_[rng.normal(size=30), rng.poisson(3.0, 30)]
    x[rng.random((30, 2)) < 0.2] = np.nan
    x[np.isnan(x).all(1), 0] = 0.5
    family = jaxem.Product((jaxem.Gaussian("diag"), jaxem.Poisson()), ((0,), (1,)))
    params = {
        "transition": np.full((2, 2), 0.5),
        "initial": np.full(2, 0.5),
        "emission": (
            {"mean": np.array([[0.0], [1.0]]), "covariance": np.array([[1.0], [2.0]])},
            {"rate": np.array([[2.0], [5.0]])},
        ),
    }
    normal = stats.norm([0, 1], np.sqrt([1, 2])).logpdf(x[:, :1])
    poisson = stats.poisson([2, 5]).logpmf(x[:, 1:])
    joint = np.where(np.isnan(normal), 0, normal) + np.where(np.isnan(poisson), 0, poisson)
    wanted = np.logaddexp(joint[:, 0], joint[:, 1]).sum() + 30 * np.log(0.5)
    model = jaxem.HMM(2, family)
    np.testing.assert_allclose(model.log_prob(params, x)[0], wanted, rtol=1e-12)
    result = fitted(x, model, params, 5)
    assert (np.diff(result.history) > -1e-9).all() and np.isfinite(result.loglik)
    with pytest.raises(ValueError, match="together"):
        jaxem.fit(jaxem.HMM(2, jaxem.Product((jaxem.Gaussian(),), ((0, 1),))), x, key=jax.random.key(0))
    with pytest.raises(ValueError, match="NaN"):
        jaxem.fit(jaxem.HMM(2, jaxem.Gaussian()), x, key=jax.random.key(0))


# --- transitions and the first state -------------------------------------------------------------
def test_zero_patterns_stay_exactly_zero():
    x = jaxem.sequences([np.sort(part) for part in drawn([30, 25, 40])])
    model = jaxem.HMM(4, jaxem.Poisson(), transition=jaxem.left_right(4), initial="fixed")
    result = jaxem.fit(model, x, key=jax.random.key(0), n_restarts=3)
    transition = np.asarray(result.params["transition"])
    assert (transition[~np.asarray(jaxem.left_right(4).allowed)] == 0).all() and transition[3, 3] == pytest.approx(1)
    assert np.asarray(result.params["initial"]).tolist() == [1, 0, 0, 0]
    path = np.asarray(model.viterbi(result.params, x))
    assert (np.diff(path, axis=1) >= 0)[path[:, 1:] >= 0].all()  # -1 in the padding
    assert model.n_free_params(x) == 3 + 4
    banded = jaxem.fit(jaxem.HMM(4, jaxem.Poisson(), transition=jaxem.banded(4)), x, key=jax.random.key(0))
    assert np.asarray(banded.params["transition"])[0, 2:].tolist() == [0, 0]


@pytest.mark.parametrize("initial", ["free", "stationary"])
def test_fixed_in_part(initial):
    """Known entries stay; the others share what these leave, at the maximum that a search over them finds."""
    fixed = np.array([[0.8, np.nan, np.nan], [np.nan, np.nan, 0.0], [0.2, 0.3, 0.5]])
    model = jaxem.HMM(3, jaxem.Poisson(), transition=jaxem.Transition(fixed=fixed), initial=initial)
    x = jaxem.sequences(drawn([60, 50]))
    result = jaxem.fit(model, x, key=jax.random.key(1), max_steps=1000, stop=jaxem.Stop(None, param_rtol=1e-9))
    got = np.asarray(result.params["transition"])
    np.testing.assert_array_equal(got[~np.isnan(fixed)], fixed[~np.isnan(fixed)])
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-12)
    assert (np.diff(result.history) > -1e-9).all()
    assert model.n_free_params(x) == 1 + 1 + 3 + (2 if initial == "free" else 0)

    def along(move):
        transition = result.params["transition"] + move * np.array([[0, 1, -1.0], [0, 0, 0], [0, 0, 0]])
        return model.log_prob({**result.params, "transition": transition}, x).sum()

    assert got[0, 1] > 1e-3 and got[0, 2] > 1e-3  # inside, so that the slope along the two vanishes
    assert abs(float(jax.grad(along)(0.0))) < 1e-3


@pytest.mark.parametrize(("initial", "n"), [("free", 5), ("fixed", 4), ("uniform", 4), ("stationary", 4)])
def test_kinds_of_initial_distribution(initial, n):
    x = jaxem.sequences(drawn([40, 30]))
    model = jaxem.HMM(2, jaxem.Poisson(), initial=initial, start=np.array([0.9, 0.1]) if initial == "fixed" else None)
    result = jaxem.fit(model, x, key=jax.random.key(0))
    assert model.n_free_params(x) == n and (np.diff(result.history) > -1e-9).all()
    probs = np.asarray(model.initial_probs(result.params))
    if initial == "fixed":
        np.testing.assert_array_equal(probs, [0.9, 0.1])
    if initial == "uniform":
        np.testing.assert_array_equal(probs, [0.5, 0.5])
    if initial == "stationary":
        np.testing.assert_allclose(probs @ result.params["transition"], probs, rtol=1e-10)
    assert ("initial" in result.params) == (initial in ("free", "fixed"))


def test_sticky_prior_is_pseudo_counts():
    """One step from a start equals relative (expected + concentration - 1); the objective holds the log-prior."""
    x = jaxem.sequences(drawn([40, 30]))
    sticky = jaxem.HMM(2, jaxem.Poisson(), transition=jaxem.sticky(2, 20.0, 2.0), initial_prior=jaxem.Dirichlet(3.0))
    plain = jax.grad(lambda eta: MODEL.log_marginal(eta, x, jaxem.Rows()).sum())(MODEL.natural(POISSON))
    counts = np.asarray(plain["log_transition"]) + np.array([[19, 1], [1, 19]])
    starts = np.asarray(plain["log_initial"]) + 2
    one = fitted(x, sticky, steps=1)
    np.testing.assert_allclose(one.params["transition"], counts / counts.sum(1, keepdims=True), rtol=1e-10)
    np.testing.assert_allclose(one.params["initial"], starts / starts.sum(), rtol=1e-10)
    prior = (np.array([[19, 1], [1, 19]]) * np.log(one.params["transition"])).sum() + 2 * np.log(one.params["initial"]).sum()
    np.testing.assert_allclose(one.objective, one.loglik + prior, rtol=1e-10)


# --- labels, starts, hard EM -----------------------------------------------------------------------
def test_some_labels_and_starts_from_labels():
    lengths = [60, 45]
    data, states = MODEL.sample_states(jax.random.key(0), jax.tree.map(jnp.asarray, POISSON), 2, 60)
    x = jaxem.sequences([row[:n] for row, n in zip(np.asarray(data.x), lengths)])
    labels = np.where(np.arange(60) % 3 == 0, states, -1)
    result = jaxem.fit(MODEL, x, key=jax.random.key(5), labels=labels)
    assert result.params["emission"]["rate"][0] < result.params["emission"]["rate"][1]
    known = jaxem.fit(MODEL, x, init=jaxem.init.Labels(np.asarray(states)), max_steps=0)
    counts = np.zeros((2, 2))
    for z, n in zip(np.asarray(states), lengths):
        np.add.at(counts, (z[: n - 1], z[1:n]), 1)
    np.testing.assert_allclose(known.params["transition"], (counts + 0.5) / (counts + 0.5).sum(1, keepdims=True), rtol=1e-9)
    for init in (jaxem.init.Quantiles(), jaxem.init.RandomResponsibilities()):
        found = jaxem.fit(MODEL, x, init=init, key=jax.random.key(0))
        assert found.loglik > MODEL.log_prob(POISSON, x).sum()


def test_viterbi_training_raises_the_joint():
    x = jaxem.sequences(drawn([60, 45]))
    result = jaxem.fit(MODEL, x, init=POISSON, algorithm=jaxem.HardEM(), max_steps=20)
    assert (np.diff(result.history) > -1e-9).all() and result.converged
    path = np.asarray(MODEL.viterbi(result.params, x))
    moves = np.zeros((2, 2))
    for z, n in zip(path, x.length):
        np.add.at(moves, (z[: n - 1], z[1:n]), 1)
    np.testing.assert_allclose(result.params["transition"], moves / moves.sum(1, keepdims=True), atol=1e-12)
    mean = [np.concatenate([row[:n][z[:n] == k] for row, z, n in zip(x.x, path, x.length)]).mean() for k in range(2)]
    np.testing.assert_allclose(result.params["emission"]["rate"], mean, rtol=1e-9)


# --- after the fit ---------------------------------------------------------------------------------
def test_online_filter_is_the_filter():
    x = jaxem.sequences(drawn([12, 12, 12]))
    wanted, surprise = MODEL.filter(POISSON, x), MODEL.step_log_prob(POISSON, x)
    belief, log_prob = MODEL.update(POISSON, None, x.x[:, 0])
    update = jax.jit(MODEL.update)
    for t in range(1, 12):
        np.testing.assert_allclose(belief, wanted[:, t - 1], atol=1e-13)
        np.testing.assert_allclose(log_prob, surprise[:, t - 1], rtol=1e-11)
        belief, log_prob = update(POISSON, belief, x.x[:, t])
    np.testing.assert_allclose(surprise.sum(1), MODEL.log_prob(POISSON, x), rtol=1e-12)


@pytest.mark.published
def test_forecasts():
    """State probabilities by matrix powers; mean and spread of counts by the law of total variance, within 5 errors."""
    x = jaxem.sequences(drawn([12, 7]))
    ahead = MODEL.forecast(jax.random.key(0), POISSON, x, 3, 20_000)
    last = np.stack([MODEL.filter(POISSON, x)[b, n - 1] for b, n in enumerate(x.length)])
    rate = POISSON["emission"]["rate"]
    for h in range(3):
        states = last @ np.linalg.matrix_power(POISSON["transition"], h + 1)
        np.testing.assert_allclose(ahead.states[:, h], states, rtol=1e-10)
        mean = states @ rate
        std = np.sqrt(states @ (rate + rate**2) - mean**2)
        np.testing.assert_allclose(ahead.mean[:, h], mean, atol=5 * 9 / 20_000**0.5)
        np.testing.assert_allclose(ahead.std[:, h], std, rtol=0.05)
    low, high = ahead.interval(0.9)
    assert (low <= ahead.mean).all() and (ahead.mean <= high).all()
    single = MODEL.forecast(jax.random.key(0), POISSON, drawn([9])[0], 2, 10)
    assert single.states.shape == (2, 2) and single.samples.shape == (10, 2)


def test_autoregression_forecasts_from_its_past():
    params = {
        "transition": np.eye(2),
        "initial": np.array([1.0, 0]),
        "emission": {"intercept": np.array([1.0, 0]), "coefficients": np.array([[0.5], [0]]), "variance": np.array([1e-12, 1])},
    }
    model = jaxem.HMM(2, jaxem.AutoRegression(order=1))
    ahead = model.forecast(jax.random.key(0), params, np.array([3.0, 2.5, 2.25]), 3, 5)
    np.testing.assert_allclose(ahead.mean, [2.125, 2.0625, 2.03125], atol=1e-5)
    x = model.sample(jax.random.key(0), jax.tree.map(jnp.asarray, params), 2, 30)
    np.testing.assert_allclose(x.x[:, -1], 2, atol=1e-4)


# --- emissions ---------------------------------------------------------------------------------------
def test_mixture_emission_equals_hmmlearn():
    hmm = pytest.importorskip("hmmlearn.hmm")
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.normal(size=(80, 2)), 0)
    weights, means = np.array([[0.3, 0.7], [0.5, 0.5]]), rng.normal(size=(2, 2, 2)) * 3
    covariance = np.ones((2, 2, 2)) * 4
    peer = hmm.GMMHMM(2, 2, covariance_type="diag")
    peer.startprob_, peer.transmat_ = np.array([0.5, 0.5]), np.array([[0.9, 0.1], [0.2, 0.8]])
    peer.weights_, peer.means_, peer.covars_ = weights, means, covariance
    params = {
        "initial": peer.startprob_,
        "transition": peer.transmat_,
        "emission": {"weights": weights, "parts": {"mean": means.reshape(4, 2), "covariance": covariance.reshape(4, 2)}},
    }
    model = jaxem.HMM(2, jaxem.FamilyMixture(2, jaxem.Gaussian("diag")))
    np.testing.assert_allclose(model.log_prob(params, x)[0], peer.score(x), rtol=1e-10)
    np.testing.assert_allclose(model.posterior(params, x), peer.predict_proba(x), atol=1e-9)
    result = jaxem.fit(model, x, key=jax.random.key(0), n_restarts=2, max_steps=20)
    assert (np.diff(result.history) > -1e-8).all() and result.loglik > model.log_prob(params, x).sum()


def two_poissons(params, x):
    rate = jnp.exp(params["log_rate"])
    return x * params["log_rate"] - rate - jax.scipy.special.gammaln(x + 1)


@pytest.mark.published
def test_users_density_is_the_family(x64):
    """A Poisson written as a function reaches, by Optax, what the closed form reaches; a mixture of it too."""
    x = jaxem.sequences(drawn([60, 45]))
    family = jaxem.density(two_poissons, init={"log_rate": np.log([2.0, 9.0])})
    options = {"max_steps": 5, "stop": NEVER}
    user = jaxem.fit(jaxem.HMM(2, family), x, init={**POISSON, "emission": {"log_rate": np.log([2.0, 9.0])}}, **options)
    closed = jaxem.fit(MODEL, x, init=POISSON, **options)
    np.testing.assert_allclose(user.loglik, closed.loglik, rtol=1e-9)
    np.testing.assert_allclose(np.exp(user.params["emission"]["log_rate"]), closed.params["emission"]["rate"], rtol=1e-6)
    np.testing.assert_allclose(jaxem.HMM(2, family).posterior(user.params, x), MODEL.posterior(closed.params, x), atol=1e-6)
    mixture = jaxem.fit(jaxem.Mixture(2, family), np.concatenate(drawn([60, 45])), key=jax.random.key(0), max_steps=5)
    assert (np.diff(mixture.history) > -1e-9).all()


@pytest.mark.published
def test_shared_and_switching_parts_of_a_regression():
    """Each M-step raises the likelihood; what is shared is one number; all switching equals least squares by state."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(90, 2))
    z = np.arange(90) // 15 % 2
    y = np.where(z, 1 + inputs @ [2, -1], -1 + inputs @ [0.5, 1]) + rng.normal(size=90) * np.where(z, 0.5, 1)
    data = {"y": y, "inputs": inputs}
    for flags in ((True, True, True), (True, False, False), (False, True, True), (True, False, True)):
        emission = jaxem.LinearRegression(*flags)
        result = jaxem.fit(jaxem.HMM(2, emission), data, key=jax.random.key(0), max_steps=30)
        assert (np.diff(result.history) > -1e-8).all()
        shapes = [result.params["emission"][name].shape for name in ("intercept", "coefficients", "variance")]
        assert shapes == [(2,) if flags[0] else (), (2, 2) if flags[1] else (2,), (2,) if flags[2] else ()]
    known = jaxem.fit(jaxem.HMM(2, jaxem.LinearRegression()), data, key=jax.random.key(0), labels=z[None], max_steps=3)
    for k in range(2):
        design = np.c_[inputs, np.ones(90)][z == k]
        line, rest, *_ = np.linalg.lstsq(design, y[z == k])
        found = known.params["emission"]
        np.testing.assert_allclose(np.r_[found["coefficients"][k], found["intercept"][k]], line, rtol=1e-7)
        np.testing.assert_allclose(found["variance"][k], rest[0] / (z == k).sum(), rtol=1e-7)


# --- bad input -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda: jaxem.sequences([np.ones(3), np.ones(0)]), "sequence 1 .* T > 0"),
        (lambda: jaxem.fit(jaxem.HMM(2, jaxem.Categorical(3)), np.array([0, 1, 3, 2]), key=KEY), "0..2; got 3 in row 2"),
        (
            lambda: jaxem.fit(
                jaxem.HMM(2, jaxem.Categorical(3)), jaxem.sequences([np.array([0, 1]), np.array([2, 1, 3])]), key=KEY
            ),
            "sequence 1: .*0..2; got 3 in row 2",
        ),
        (lambda: jaxem.fit(with_transition(fixed=np.array([[0.9, 0.3], [0.5, 0.5]])), ONES, key=KEY), "row 0 must sum to 1"),
        (lambda: jaxem.fit(with_transition(allowed=np.array([[True, True], [False, False]])), ONES, key=KEY), "row 1 is all"),
        (
            lambda: jaxem.fit(MODEL, ONES, init={**POISSON, "transition": np.full((2, 2), 0.6)}),
            "transition must be .* sum of 1",
        ),
        (lambda: jaxem.sequences([{"y": np.ones(3), "inputs": np.ones((4, 1))}]), "one length; got 4 and 3"),
        (lambda: jaxem.fit(REGRESSION, {"y": np.ones(5), "inputs": np.ones((4, 1))}, key=KEY), "one sequence"),
        (lambda: jaxem.fit(MODEL, ONES, key=KEY, labels=np.array([[0, 1, 2, 1]])), "0..1 or -1; got 2 in row 0, column 2"),
        (lambda: jaxem.fit(MODEL, ONES, key=KEY, labels=np.array([[0, 1]])), r"shape \(1, 4\)"),
        (lambda: jaxem.fit(jaxem.HMM(2, jaxem.Poisson(), initial="free start"), ONES, key=KEY), "one of free, fixed"),
        (lambda: jaxem.fit(jaxem.HMM(2, jaxem.AutoRegression(order=4)), ONES, key=KEY), "longer than order=4"),
        (lambda: jaxem.fit(MODEL, np.full(4, np.nan), key=KEY), "at least one observed step"),
    ],
)
def test_bad_input(call, wanted):
    with pytest.raises(ValueError, match=wanted):
        call()


KEY = jax.random.key(0)
ONES = np.ones(4)
REGRESSION = jaxem.HMM(2, jaxem.LinearRegression())


def with_transition(**known):
    return jaxem.HMM(2, jaxem.Poisson(), transition=jaxem.Transition(**known))


def test_an_impossible_observation_is_named():
    model = jaxem.HMM(2, jaxem.Categorical(3))
    init = {**POISSON, "emission": {"probs": np.array([[0.5, 0.5, 0], [0.2, 0.8, 0]])}}
    data = jaxem.sequences([np.array([0, 1, 0]), np.array([1, 0, 2, 1])])
    with pytest.raises(jaxem.FitError, match=r"NONFINITE.*row\(s\) 1; step 2 of sequence 1 is impossible"):
        jaxem.fit(model, data, init=init)
    inside = jax.jit(lambda d: jaxem.fit(model, d, init=init).status)(jax.tree.map(jnp.asarray, data))
    assert int(inside) == jaxem.Status.NONFINITE


# --- what is asked for in a wrong way ----------------------------------------------------------
def test_the_next_step_as_a_plain_value():
    first, log_prob = MODEL.update(POISSON, None, [3, 8])
    np.testing.assert_allclose(MODEL.update(POISSON, None, np.array([3.0, 8.0]))[0], first)
    np.testing.assert_allclose(log_prob, MODEL.log_prob(POISSON, jaxem.sequences([[3.0], [8.0]])))
    for x in (3, 3.0, np.float64(3), jnp.asarray(3.0)):
        with pytest.raises(ValueError, match=r"x must be \(B,\) or \(B, D\).*; got a single number: give \[x\]"):
            MODEL.update(POISSON, first[:1], x)


LINES = {"intercept": np.zeros(2), "coefficients": np.full((2, 2), 0.3), "variance": np.ones(2)}
SHORT = {
    "chain": (MODEL, POISSON, 1),
    "chain that looks back": (jaxem.HMM(2, jaxem.AutoRegression(order=2)), {**POISSON, "emission": LINES}, 3),
    "Hamilton's": (
        jaxem.MarkovAutoregression(2, 3),
        {"transition": POISSON["transition"], "mean": np.zeros(2), "coefficients": np.full(3, 0.2), "variance": np.ones(())},
        3,
    ),
    "state space": (jaxem.LocalLevel(), {"level": 1.0}, 1),
    "drift": (jaxem.WrightFisher(100, n_grid=5), {"selection": np.zeros(())}, 1),
}


@pytest.mark.parametrize("name", SHORT)
def test_samples_that_are_too_short(name):
    model, params, least = SHORT[name]
    for n_steps in (least - 1, 0, -1, 2.5):
        with pytest.raises(ValueError, match=f"n_steps must be an integer of at least {least}; got {n_steps}"):
            model.sample(jax.random.key(0), params, 2, n_steps)
    if name != "state space":  # parameters on the host are as good as any
        drawn = jax.tree.leaves(model.sample(jax.random.key(0), params, 2, least))[0]
        assert drawn.shape == (2, least) and np.isfinite(drawn).all()
