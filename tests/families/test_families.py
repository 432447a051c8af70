"""Poisson, gamma and categorical components against closed forms, SciPy and EM written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats

import jaxem

NEVER = jaxem.Stop(loglik_rtol=None)
TIGHT = jaxem.Stop(loglik_rtol=1e-14)


def fit(family, k, x, **options):
    return jaxem.fit(jaxem.Mixture(k, family), x, **options)


def start(k, **components):
    return {"weights": np.full(k, 1 / k), "components": {name: np.asarray(v, float) for name, v in components.items()}}


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def counts(n=400, seed=0):
    """(n, 3) counts of two kinds of rows."""
    rng = np.random.default_rng(seed)
    rates = np.array([[2.0, 5.0, 1.0], [7.0, 4.0, 3.0]])
    return rng.poisson(rates[rng.integers(2, size=n)]).astype(float)


def durations(n=500, seed=0):
    """(n, 2) positive data of two kinds of rows."""
    rng = np.random.default_rng(seed)
    z = rng.random(n) < 0.4
    return np.where(z[:, None], rng.gamma([2.0, 5.0], [0.5, 1.0], (n, 2)), rng.gamma([9.0, 3.0], [0.6, 0.4], (n, 2)))


def answers(n=500, seed=0):
    """(n, 4) codes 0..2 of two latent classes."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(3), (2, 4))
    z = rng.integers(2, size=n)
    return (rng.random((n, 4, 1)) > probs[z].cumsum(-1)[..., :-1]).sum(-1)


DATA = {"poisson": counts, "gamma": durations, "categorical": answers}
FAMILIES = {"poisson": jaxem.Poisson(), "gamma": jaxem.Gamma(), "categorical": jaxem.Categorical(3)}


# --- one component ---------------------------------------------------------------------------
@pytest.mark.parametrize("columns", [None, 3])
def test_one_poisson_is_the_mean(dtype, columns):
    x = counts().astype(dtype)
    x = x[:, 0] if columns is None else x
    result = fit(jaxem.Poisson(), 1, x, key=jax.random.key(0))
    assert result.params["components"]["rate"].shape == (1, *x.shape[1:])
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(result.params["components"]["rate"][0], x.mean(0, np.float64), rtol=tolerance)
    wanted = stats.poisson(x.mean(0, np.float64)).logpmf(x).sum()
    assert float(result.loglik) == pytest.approx(wanted, rel=tolerance)


@pytest.mark.published
@pytest.mark.parametrize("shape", [0.3, 1.0, 4.0, 60.0])
def test_one_gamma_is_the_maximum_of_scipy(x64, shape):
    x = np.random.default_rng(1).gamma(shape, 3.0, 300)
    result = fit(jaxem.Gamma(), 1, x, key=jax.random.key(0), stop=TIGHT)
    a, _, scale = stats.gamma.fit(x, floc=0)
    assert float(result.params["components"]["shape"][0]) == pytest.approx(a, rel=1e-5)
    assert float(result.params["components"]["rate"][0]) == pytest.approx(1 / scale, rel=1e-5)
    assert float(result.loglik) == pytest.approx(stats.gamma(a, scale=scale).logpdf(x).sum(), rel=1e-9)


@pytest.mark.published
def test_one_gamma_of_columns_in_both_precisions(dtype):
    x = durations().astype(dtype)
    result = fit(jaxem.Gamma(), 1, x, key=jax.random.key(0), stop=TIGHT)
    wanted = [stats.gamma.fit(column.astype(float), floc=0) for column in x.T]
    tolerance = 1e-2 if dtype == np.float32 else 1e-5
    np.testing.assert_allclose(result.params["components"]["shape"][0], [a for a, _, _ in wanted], rtol=tolerance)
    np.testing.assert_allclose(result.params["components"]["rate"][0], [1 / s for _, _, s in wanted], rtol=tolerance)
    best = sum(stats.gamma(a, scale=s).logpdf(column).sum() for column, (a, _, s) in zip(x.T.astype(float), wanted))
    assert float(result.loglik) == pytest.approx(best, rel=1e-5 if dtype == np.float32 else 1e-9)


@pytest.mark.parametrize("columns", [None, 4])
def test_one_categorical_is_the_frequencies(dtype, columns):
    x = answers()
    x = x[:, 0] if columns is None else x
    result = fit(jaxem.Categorical(3), 1, x, key=jax.random.key(0))
    frequencies = (x[..., None] == np.arange(3)).mean(0)
    probs = result.params["components"]["probs"]
    assert probs.shape == (1, *frequencies.shape) and probs.dtype == dtype
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(probs[0], frequencies, rtol=tolerance)
    assert float(result.loglik) == pytest.approx(len(x) * special.xlogy(frequencies, frequencies).sum(), rel=tolerance)


def test_weights_are_counts(x64):
    x, options = counts(100), dict(max_steps=15, stop=NEVER)
    weight = np.arange(100) % 4
    init = start(2, rate=[[1, 1, 1], [5, 5, 5]])
    one = fit(jaxem.Poisson(), 2, x, weight=weight, init=init, **options)
    two = fit(jaxem.Poisson(), 2, np.repeat(x, weight, 0), init=init, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), one.params, two.params)


# --- several components against EM in NumPy --------------------------------------------------
def plain_em(x, params, log_density, estimate, steps):
    """EM as textbooks write it: `log_density` gives (N, K), `estimate` the components from responsibilities."""
    weights, components = params["weights"], params["components"]
    for _ in range(steps):
        joint = np.log(weights) + log_density(components, x)
        responsibilities = np.exp(joint - special.logsumexp(joint, axis=1, keepdims=True))
        weights, components = responsibilities.mean(0), estimate(responsibilities, x)
    loglik = special.logsumexp(np.log(weights) + log_density(components, x), axis=1).sum()
    return {"weights": weights, "components": components}, loglik


def poisson_density(components, x):
    return stats.poisson(components["rate"]).logpmf(x[:, None, :]).sum(-1)


def poisson_estimate(responsibilities, x):
    return {"rate": responsibilities.T @ x / responsibilities.sum(0)[:, None]}


def class_density(components, x):
    columns = np.arange(x.shape[1])
    return np.log(components["probs"][:, columns, x]).sum(-1).T


def class_estimate(responsibilities, x):
    one_hot = (x[..., None] == np.arange(3)).astype(float)
    return {"probs": np.einsum("nk,ndv->kdv", responsibilities, one_hot) / responsibilities.sum(0)[:, None, None]}


def class_start():
    return start(2, probs=np.random.default_rng(5).dirichlet(np.full(3, 5.0), (2, 4)))


CASES = {
    "poisson": (jaxem.Poisson(), counts(), start(2, rate=[[1, 4, 1], [6, 6, 6]]), poisson_density, poisson_estimate),
    "categorical": (jaxem.Categorical(3), answers(), class_start(), class_density, class_estimate),
}


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_are_those_of_numpy(dtype, name):
    family, x, init, density, estimate = CASES[name]
    wanted, loglik = plain_em(x, init, density, estimate, 20)
    if name == "poisson":
        x = x.astype(dtype)
    result = fit(family, 2, x, init=cast(init, dtype), max_steps=20, stop=NEVER)
    tolerance = 1e-3 if dtype == np.float32 else 1e-8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), result.params, wanted)
    assert float(result.loglik) == pytest.approx(loglik, rel=1e-5 if dtype == np.float32 else 1e-12)
    history = np.asarray(result.history, float)
    assert len(history) == 21 and (np.diff(history) > (-1e-2 if dtype == np.float32 else -1e-9)).all()


def test_gamma_mixture_reaches_the_maximum_of_scipy(x64):
    x = durations(400)[:, 0]
    init = start(2, shape=[1.5, 6.0], rate=[1.0, 1.0])

    def split(theta):
        return special.expit(theta[0]), np.exp(theta[1:3]), np.exp(theta[3:])

    def negative(theta):
        w, shape, rate = split(theta)
        density = stats.gamma(shape, scale=1 / rate).logpdf(x[:, None])
        return -special.logsumexp(density, b=[1 - w, w], axis=1).sum()

    theta = np.concatenate([[0.0], *(np.log(init["components"][n]) for n in ("shape", "rate"))])
    best = optimize.minimize(negative, theta, method="BFGS", options={"gtol": 1e-5})
    result = fit(jaxem.Gamma(), 2, x, init=init, stop=TIGHT, max_steps=5_000)
    assert float(result.loglik) == pytest.approx(-best.fun, abs=1e-5)
    assert (np.diff(np.asarray(result.history)) > -1e-9).all()
    _, shape, rate = split(best.x)
    np.testing.assert_allclose(result.params["components"]["shape"], shape, rtol=1e-2)
    np.testing.assert_allclose(result.params["components"]["rate"], rate, rtol=1e-2)


def test_gamma_objective_rises_in_both_precisions(dtype):
    x = durations().astype(dtype)
    result = fit(jaxem.Gamma(), 2, x, key=jax.random.key(0), n_restarts=4, max_steps=200)
    assert int(result.status) in (jaxem.Status.CONVERGED, jaxem.Status.MAX_STEPS)
    slack = 1e-6 if dtype == np.float32 else 1e-12
    history = np.asarray(result.history, float)
    assert (np.diff(history) > -slack * (1 + np.abs(history[-1]))).all()


def test_impossible_codes_stay_impossible(x64):
    """A probability of zero is a structural zero: EM never raises it, and nothing turns into NaN."""
    x = np.array([0, 0, 1, 1, 2, 2, 2])
    init = start(2, probs=[[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    result = fit(jaxem.Categorical(3), 2, x, init=init, max_steps=50, stop=NEVER)
    probs = np.asarray(result.params["components"]["probs"])
    assert probs[0, 2] == 0 and probs[1, 0] == 0 and np.isfinite(probs).all()
    np.testing.assert_allclose(np.asarray(result.params["weights"]) @ probs, [2 / 7, 2 / 7, 3 / 7], atol=1e-9)


# --- priors ----------------------------------------------------------------------------------
@pytest.mark.parametrize("columns", [None, 3])
def test_gamma_prior_gives_the_mode(dtype, columns):
    x = counts(50).astype(dtype)
    x = x[:, 0] if columns is None else x
    result = fit(jaxem.Poisson(jaxem.GammaPrior(3.5, 2.0)), 1, x, key=jax.random.key(0))
    mode = (3.5 - 1 + x.sum(0)) / (2.0 + len(x))
    np.testing.assert_allclose(result.params["components"]["rate"][0], mode, rtol=1e-6 if dtype == np.float32 else 1e-12)


def test_gamma_prior_of_a_mixture_is_part_of_the_objective(x64):
    family, x, init, density, _ = CASES["poisson"]
    shape, inverse_scale = np.array([2.0, 3.0, 1.5]), 4.0

    def estimate(responsibilities, x):
        total = responsibilities.T @ x + shape - 1
        return {"rate": total / (responsibilities.sum(0)[:, None] + inverse_scale)}

    wanted, loglik = plain_em(x, init, density, estimate, 20)
    family = jaxem.Poisson(jaxem.GammaPrior(shape, inverse_scale))
    result = fit(family, 2, x, init=init, max_steps=20, stop=NEVER)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), result.params, wanted)
    assert float(result.loglik) == pytest.approx(loglik, rel=1e-12)
    rate = wanted["components"]["rate"]
    log_prior = ((shape - 1) * np.log(rate) - inverse_scale * rate).sum()
    assert float(result.objective) == pytest.approx(loglik + log_prior, rel=1e-12)
    assert (np.diff(np.asarray(result.history)) > -1e-9).all()


@pytest.mark.parametrize("concentration", [2.5, [1.0, 2.0, 4.0]])
def test_dirichlet_prior_gives_the_mode(dtype, concentration):
    x = answers(60)
    family = jaxem.Categorical(3, jaxem.Dirichlet(jnp.asarray(concentration)))
    result = fit(family, 1, x, key=jax.random.key(0))
    total = (x[..., None] == np.arange(3)).sum(0) + np.asarray(concentration) - 1
    wanted = total / total.sum(-1, keepdims=True)
    np.testing.assert_allclose(result.params["components"]["probs"][0], wanted, rtol=1e-5 if dtype == np.float32 else 1e-12)


def test_dirichlet_priors_of_weights_and_of_classes(x64):
    _, x, init, density, _ = CASES["categorical"]
    model = jaxem.Mixture(2, jaxem.Categorical(3, jaxem.Dirichlet(2.0)), jaxem.Dirichlet(11.0))
    result = jaxem.fit(model, x, init=init, stop=TIGHT)
    # At a mode one more step of EM with pseudo-counts, written out, moves nothing.
    params = jax.tree.map(np.asarray, result.params)
    joint = np.log(params["weights"]) + density(params["components"], x)
    responsibilities = np.exp(joint - special.logsumexp(joint, axis=1, keepdims=True))
    weights = responsibilities.sum(0) + 10
    total = np.einsum("nk,ndv->kdv", responsibilities, x[..., None] == np.arange(3)) + 1
    np.testing.assert_allclose(params["weights"], weights / weights.sum(), atol=1e-5)
    np.testing.assert_allclose(params["components"]["probs"], total / total.sum(-1, keepdims=True), atol=1e-5)


# --- sampling and counting -------------------------------------------------------------------
TRUTH = {
    "poisson": {"rate": [[2.0, 9.0], [10.0, 1.0]]},
    "gamma": {"shape": [[4.0, 2.0], [9.0, 8.0]], "rate": [[4.0, 1.0], [1.5, 8.0]]},
    "categorical": {"probs": [[[0.8, 0.1, 0.1]] * 4, [[0.1, 0.2, 0.7]] * 4]},
}


@pytest.mark.parametrize("name", TRUTH)
def test_refit_of_a_sample_recovers_the_truth(dtype, name):
    model = jaxem.Mixture(2, FAMILIES[name])
    truth = cast(start(2, **TRUTH[name]) | {"weights": np.array([0.3, 0.7])}, dtype)
    x = model.sample(jax.random.key(1), truth, 4_000)
    assert x.shape == (4_000, *truth["components"][next(iter(TRUTH[name]))].shape[1:][: 2 if name != "categorical" else 1])
    assert x.dtype == (np.int32 if name == "categorical" else dtype)
    result = jaxem.fit(model, x, key=jax.random.key(0), n_restarts=4)
    order = np.argsort(np.asarray(result.params["weights"]))
    got = jax.tree.map(lambda leaf: np.asarray(leaf)[order], result.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.1, atol=0.03), got, truth)
    assert float(result.loglik) > float(model.log_prob(truth, x).sum())


@pytest.mark.parametrize(
    ("name", "free"),
    # weights, then for each component: a rate, a shape and a rate, or V - 1 probabilities, a column each.
    [("poisson", 2 + 3 * 3), ("gamma", 2 + 3 * 2 * 2), ("categorical", 2 + 3 * 4 * 2)],
)
def test_n_free_params(x64, name, free):
    model, x = jaxem.Mixture(3, FAMILIES[name]), DATA[name]()
    assert model.n_free_params(x) == free
    assert model.n_free_params(x[:, 0]) == 2 + (free - 2) // x.shape[1]
    result = jaxem.fit(model, x, key=jax.random.key(0), max_steps=5)
    assert float(jaxem.bic(result, x)) == pytest.approx(free * np.log(len(x)) - 2 * float(result.loglik), rel=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_posterior_of_rows_sums_to_one(dtype, name):
    model, x = jaxem.Mixture(2, FAMILIES[name]), DATA[name]()
    x = x if name == "categorical" else x.astype(dtype)
    result = jaxem.fit(model, x, key=jax.random.key(0), max_steps=20)
    posterior = np.asarray(model.posterior(result.params, x))
    assert posterior.shape == (len(x), 2)
    np.testing.assert_allclose(posterior.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(model.predict(result.params, x), posterior.argmax(1))


@pytest.mark.parametrize(
    ("family", "x", "message"),
    [
        (jaxem.Poisson(), [0.0, 1.5], "counts"),
        (jaxem.Poisson(), [0.0, -1.0], "counts"),
        (jaxem.Gamma(), [0.0, 1.0], "positive"),
        (jaxem.Categorical(2), [0, 2], r"codes 0\.\.1"),
        (jaxem.Categorical(2), [0.5, 1], r"codes 0\.\.1"),
        (jaxem.Categorical(0), [0, 0], "n_categories"),
    ],
)
def test_data_outside_the_support_are_refused(x64, family, x, message):
    with pytest.raises(ValueError, match=message):
        fit(family, 1, np.array(x), key=jax.random.key(0))
