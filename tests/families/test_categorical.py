"""Categorical components against frequencies, modes and EM written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from components import CASES, answers, start
from scipy import special

import jaxem
from jaxem.numerics.blocks import equations

NEVER = jaxem.Stop(loglik_rtol=None)
TIGHT = jaxem.Stop(loglik_rtol=1e-14)


def fit(family, k, x, **options):
    return jaxem.fit(jaxem.Mixture(k, family), x, **options)


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


def test_impossible_codes_stay_impossible(x64):
    """A probability of zero is a structural zero: EM never raises it, and nothing turns into NaN."""
    x = np.array([0, 0, 1, 1, 2, 2, 2])
    init = start(2, probs=[[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    result = fit(jaxem.Categorical(3), 2, x, init=init, max_steps=50, stop=NEVER)
    probs = np.asarray(result.params["components"]["probs"])
    assert probs[0, 2] == 0 and probs[1, 0] == 0 and np.isfinite(probs).all()
    np.testing.assert_allclose(np.asarray(result.params["weights"]) @ probs, [2 / 7, 2 / 7, 3 / 7], atol=1e-9)


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


def test_only_categories_that_occur_are_counted(x64):
    rng = np.random.default_rng(0)
    x = np.stack([rng.integers(0, levels, 50) for levels in (2, 4, 3)], 1)
    assert jaxem.Mixture(2, jaxem.Categorical(4)).n_free_params(x) == 1 + 2 * (1 + 3 + 2)
    missing = np.where(np.arange(150).reshape(50, 3) % 7 == 0, -1, x)
    assert jaxem.Mixture(2, jaxem.Categorical(4, missing="marginal")).n_free_params(missing) == 1 + 2 * (1 + 3 + 2)
    assert jaxem.Single(jaxem.Categorical(4)).n_free_params(x[:, 0]) == 1
    # A prior gives every category a probability that the data move.
    assert jaxem.Mixture(2, jaxem.Categorical(4, jaxem.Dirichlet(2.0))).n_free_params(x) == 1 + 2 * 9


@pytest.mark.parametrize("missing", [None, "marginal"])
@pytest.mark.parametrize("columns", [(), (3,)])
def test_codes_are_looked_up_as_one_hot_products_have_them(x64, missing, columns, monkeypatch):
    """Scores, counts, structural zeros, codes that are missing and codes that are none, both ways."""
    rng, family = np.random.default_rng(0), jaxem.Categorical(5, missing=missing)
    params = {"probs": jnp.asarray(rng.dirichlet(np.ones(5), (2, *columns)))}
    params["probs"] = params["probs"].at[0, ..., 1].set(0)
    x, weight = rng.integers(0 if missing is None else -1, 5, (40, *columns)), rng.random((2, 40))
    x[:2] = [[9], [-2]] if columns else [9, -2]

    def both():
        score = lambda eta: family.scores(family.pack(eta), jnp.asarray(x))  # noqa: E731
        scores, pull = jax.vjp(score, family.natural(params))
        return scores, pull(jnp.where(scores > -jnp.inf, weight, 0))[0]["log_probs"]

    one_hot = both()
    assert (one_hot[0][:, :2] == -np.inf).all()
    monkeypatch.setattr("jaxem.families.categorical.FEW", 2)
    for found, wanted in zip(both(), one_hot):
        np.testing.assert_allclose(found, wanted, atol=1e-13)


def test_many_categories_cost_no_more_than_the_data():
    """No array of T V numbers in an E-step, a start or a draw; draws have the frequencies that they should."""
    t, v = 2000, 400
    model, x = jaxem.HMM(2, jaxem.Categorical(v)), jaxem.Sequences(jnp.zeros((1, t), jnp.int32), jnp.array([t]))
    probs = np.random.default_rng(0).dirichlet(np.full(v, 0.1), 2).astype(np.float32)
    params = {"initial": jnp.ones(2) / 2, "transition": jnp.full((2, 2), 0.5), "emission": {"probs": jnp.asarray(probs)}}
    step = jax.grad(lambda p, x: model.log_prob(p, x).sum())
    start = lambda key, x: model.initialize(key, x, jnp.ones(1))  # noqa: E731
    for program in (
        jax.make_jaxpr(step)(params, x),
        jax.make_jaxpr(start)(jax.random.key(0), x),
        jax.make_jaxpr(lambda key, p: model.sample(key, p, 1, t))(jax.random.key(0), params),
    ):
        largest = max(np.prod(each.aval.shape) for equation in equations(program.jaxpr) for each in equation.outvars)
        assert largest < t * v / 4
    z = np.arange(20_000) % 2
    drawn = np.asarray(model.emission.sample(jax.random.key(0), params["emission"], jnp.asarray(z)))
    for k in range(2):
        expected = 10_000 * probs[k]
        counts = np.bincount(drawn[z == k], minlength=v)
        often = expected > 5
        assert (np.square(counts - expected) / expected)[often].sum() < often.sum() + 5 * np.sqrt(2 * often.sum())
