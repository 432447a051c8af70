"""What holds of Poisson, gamma and categorical components alike: steps of EM, refits, counts of parameters, the support."""

import jax
import numpy as np
import pytest
from components import CASES, answers, cast, counts, durations, plain_em, start

import jaxem

NEVER = jaxem.Stop(loglik_rtol=None)
TIGHT = jaxem.Stop(loglik_rtol=1e-14)


def fit(family, k, x, **options):
    return jaxem.fit(jaxem.Mixture(k, family), x, **options)


SIMPLE_DATA = {"poisson": counts, "gamma": durations, "categorical": answers}
SIMPLE = {"poisson": jaxem.Poisson(), "gamma": jaxem.Gamma(), "categorical": jaxem.Categorical(3)}


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


# --- sampling and counting -------------------------------------------------------------------
SIMPLE_TRUTH = {
    "poisson": {"rate": [[2.0, 9.0], [10.0, 1.0]]},
    "gamma": {"shape": [[4.0, 2.0], [9.0, 8.0]], "rate": [[4.0, 1.0], [1.5, 8.0]]},
    "categorical": {"probs": [[[0.8, 0.1, 0.1]] * 4, [[0.1, 0.2, 0.7]] * 4]},
}


@pytest.mark.parametrize("name", SIMPLE_TRUTH)
def test_refit_in_both_precisions(dtype, name):
    model = jaxem.Mixture(2, SIMPLE[name])
    truth = cast(start(2, **SIMPLE_TRUTH[name]) | {"weights": np.array([0.3, 0.7])}, dtype)
    x = model.sample(jax.random.key(1), truth, 4_000)
    assert x.shape == (
        4_000,
        *truth["components"][next(iter(SIMPLE_TRUTH[name]))].shape[1:][: 2 if name != "categorical" else 1],
    )
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
    model, x = jaxem.Mixture(3, SIMPLE[name]), SIMPLE_DATA[name]()
    assert model.n_free_params(x) == free
    assert model.n_free_params(x[:, 0]) == 2 + (free - 2) // x.shape[1]
    result = jaxem.fit(model, x, key=jax.random.key(0), max_steps=5)
    assert float(jaxem.bic(result, x)) == pytest.approx(free * np.log(len(x)) - 2 * float(result.loglik), rel=1e-12)


@pytest.mark.parametrize("name", SIMPLE)
def test_posterior_of_rows_sums_to_one(dtype, name):
    model, x = jaxem.Mixture(2, SIMPLE[name]), SIMPLE_DATA[name]()
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
