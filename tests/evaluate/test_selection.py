"""Information criteria, and the choice among models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.engine.restarts import tier


@pytest.fixture(scope="module")
def data():
    dtype = np.float64 if jax.config.jax_enable_x64 else np.float32
    return jaxem.datasets.old_faithful().astype(dtype)


@pytest.fixture(scope="module")
def result(data):
    return jaxem.fit(jaxem.GaussianMixture(2), data, key=jax.random.key(0), n_restarts=4)


def rtol(x):
    return 1e-10 if np.asarray(x).dtype == np.float64 else 1e-5


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_aic_and_bic_equal_scikit_learns(data, covariance):
    mixture = pytest.importorskip("sklearn.mixture")
    from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky

    result = jaxem.fit(jaxem.GaussianMixture(3, covariance), data, key=jax.random.key(1), max_steps=20)
    other = mixture.GaussianMixture(3, covariance_type=covariance)
    other.weights_ = np.asarray(result.params["weights"], np.float64)
    other.means_ = np.asarray(result.params["components"]["mean"], np.float64)
    other.covariances_ = np.asarray(result.params["components"]["covariance"], np.float64)
    other.precisions_cholesky_ = _compute_precision_cholesky(other.covariances_, covariance)
    x = data.astype(np.float64)
    np.testing.assert_allclose(jaxem.aic(result, data), other.aic(x), rtol=rtol(data))
    np.testing.assert_allclose(jaxem.bic(result, data), other.bic(x), rtol=rtol(data))


def test_weights_count_as_repeated_rows(data, result):
    weight = np.arange(len(data)) % 3
    repeated = np.repeat(data, weight, axis=0)
    weighted = jaxem.fit(jaxem.GaussianMixture(2), data, weight=weight, init=result)
    plain = jaxem.fit(jaxem.GaussianMixture(2), repeated, init=result)
    for criterion in (jaxem.bic, jaxem.icl):
        np.testing.assert_allclose(criterion(weighted, data, weight=weight), criterion(plain, repeated), rtol=100 * rtol(data))


def test_bic_with_the_number_of_data_given(data, result):
    expected = -2 * result.loglik + np.log(1000.0) * 11
    np.testing.assert_allclose(jaxem.bic(result, data, n_data=1000), expected, rtol=rtol(data))


def test_icl_is_bic_of_the_completed_data(data, result):
    model, params = result.model, result.params
    labels = np.asarray(model.predict(params, jnp.asarray(data)))
    completed = 0.0
    for k in range(2):
        one = {
            "weights": jnp.ones(1, data.dtype),
            "components": jax.tree.map(lambda x, k=k: x[k : k + 1], params["components"]),
        }
        log_prob = jaxem.GaussianMixture(1).log_prob(one, jnp.asarray(data[labels == k]))
        completed += float(log_prob.sum() + (labels == k).sum() * jnp.log(params["weights"][k]))
    expected = -2 * completed + np.log(len(data)) * 11
    np.testing.assert_allclose(jaxem.icl(result, data), expected, rtol=10 * rtol(data))
    assert jaxem.icl(result, data) > jaxem.bic(result, data)


def test_icl_ignores_what_absent_rows_hold(data, result):
    weight = np.ones(len(data))
    weight[3] = 0
    spoiled = data.copy()
    spoiled[3] = np.nan
    fitted = jaxem.fit(jaxem.GaussianMixture(2), spoiled, weight=weight, init=result)
    assert np.isfinite(jaxem.icl(fitted, spoiled, weight=weight))


def test_criteria_take_what_fit_takes(data, result):
    assert jaxem.bic(result, [list(map(np.float32, row)) for row in data]) == jaxem.bic(result, data)


def test_criteria_of_a_batched_result(data):
    keys = jax.random.split(jax.random.key(0), 3)
    batch = jax.jit(jax.vmap(lambda key: jaxem.fit(jaxem.GaussianMixture(2), data, key=key)))(keys)
    assert jaxem.aic(batch, data).shape == jaxem.bic(batch, data).shape == (3,)


def test_select_chooses_the_least_and_lists_all(data):
    models = [jaxem.GaussianMixture(k, "tied") for k in (1, 2, 3)]
    seen = []
    chosen = jaxem.select(models, data, key=jax.random.key(0), n_restarts=8, workers=2, on_fit=seen.append)
    assert [c.model for c in chosen.candidates] == models and len(seen) == 3
    for c in chosen.candidates:
        np.testing.assert_allclose(c.score, jaxem.bic(c.result, data), rtol=rtol(data))
        assert c.n_free_params == c.model.n_free_params(data)
    assert chosen.best.model == models[2]
    assert str(chosen).count("*") == 1
    by_function = jaxem.select(models[:2], data, key=jax.random.key(0), n_restarts=8, criterion=lambda r, x: jaxem.aic(r, x))
    assert by_function.best.model == models[1]


def test_a_degenerate_fit_is_not_chosen(data):
    # Repeated rows make a component of no width: its likelihood has no bound but the floor.
    tight = np.concatenate([np.repeat(data[:1] + 50, 20, axis=0), data])
    labels = (np.arange(len(tight)) >= 20).astype(np.int32)
    spurious = jaxem.fit(jaxem.GaussianMixture(2), tight, init=jaxem.init.Labels(labels))
    regular = jaxem.fit(jaxem.GaussianMixture(1), tight, key=jax.random.key(0))
    candidates = [jaxem.Candidate(r.model, r, 0, float(jaxem.bic(r, tight))) for r in (spurious, regular)]
    assert candidates[0].degenerate and candidates[0].score < candidates[1].score
    assert jaxem.Selection(tuple(candidates), "bic").best is candidates[1]


def test_one_order_of_statuses(data):
    """The objective decides among restarts that ended well; then come those that fell, collapsed, and failed."""
    regular = jaxem.fit(jaxem.GaussianMixture(1), data, key=jax.random.key(0))
    order = [("MAX_STEPS", "INTERRUPTED", "CONVERGED"), ("DECREASED",), ("DEGENERATE",), ("NONFINITE",)]
    worse = [jaxem.Status[name] for names in reversed(order) for name in names]
    results = [dataclasses.replace(regular, status=jnp.int32(status)) for status in worse]
    candidates = [jaxem.Candidate(r.model, r, 0, float(score)) for score, r in enumerate(results)]
    candidates.append(jaxem.Candidate(regular.model, None, 0, float("inf")))  # failed in every restart
    ranks = [c.tier for c in candidates]
    assert ranks == [3, 2, 1, 0, 0, 0, 3]
    assert [int(x) for x in tier(jnp.array(worse))] == ranks[:-1]
    for i in range(1, len(worse) + 1):  # the later it stands here, the worse its score and the better its status
        best = jaxem.Selection(tuple(candidates[:i]), "bic").best
        assert best is candidates[min(i - 1, 3)]
    assert "chosen DECREASED: the objective fell" in str(jaxem.Selection(tuple(candidates[:3]), "bic"))
    assert "chosen" not in str(jaxem.Selection((candidates[5],), "bic"))
    assert "\nDECREASED: the objective fell" in str(results[2]) and "fell" not in str(regular)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"criterion": "dic"}, "criterion must be one of"),
        ({"models": []}, "models must hold"),
        ({"workers": 0}, "workers must be"),
    ],
)
def test_select_refuses(data, changes, message):
    arguments = {"models": [jaxem.GaussianMixture(1)], "data": data, "key": jax.random.key(0)} | changes
    with pytest.raises(ValueError, match=message):
        jaxem.select(**arguments)


def test_what_is_wrong_with_any_model_is_said_before_the_first_fit():
    x = np.random.default_rng(0).normal(size=(30, 2))
    fitted = []
    with pytest.raises(TypeError, match=r"model must be a jaxem.Model"):
        jaxem.select([jaxem.GaussianMixture(1), jaxem.Gaussian()], x, key=jax.random.key(0), on_fit=fitted.append)
    assert not fitted
