"""Information criteria, and the choice among models."""

import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.evaluate import selection


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


TIED = [jaxem.GaussianMixture(k, "tied") for k in (1, 2, 3)]
OPTIONS = {"key": jax.random.key(0), "n_restarts": 8}


def test_select_goes_on_from_checkpoints(data, tmp_path):
    """Whatever the order of the models, and whichever were added; of other data they are refused."""
    chosen = jaxem.select([*TIED[1:], TIED[1]], data, workers=2, checkpoint=tmp_path, **OPTIONS)
    assert len(list(tmp_path.iterdir())) == 3
    steps = []
    again = jaxem.select(TIED, data, checkpoint=tmp_path, callback=lambda s: steps.append(s.n_steps.max()), **OPTIONS)
    assert len(list(tmp_path.iterdir())) == 4
    for before, after in zip(chosen.candidates, again.candidates[1:], strict=False):
        assert before.score == after.score
    done = {int(np.asarray(c.result.restarts.n_steps).max()) for c in again.candidates}
    assert set(map(int, steps)) <= done | {2}  # nothing was fitted twice
    with pytest.raises(ValueError, match="another fit: not the same data"):
        jaxem.select(TIED[1:2], data[1:], checkpoint=tmp_path, **OPTIONS)


@pytest.fixture
def interrupt():
    """Makes hooks that do what Ctrl-C does, once; and when the last one did."""
    at = []

    def hook():
        once = iter([os.getpid()])

        def do(_):
            for pid in once:
                at.append(time.perf_counter())
                os.kill(pid, signal.SIGINT)

        return do

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield hook, at
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_leaves_what_is_finished(data, interrupt, workers):
    hook, at = interrupt
    chosen = jaxem.select(TIED * 3, data, workers=workers, on_fit=hook(), **OPTIONS)
    assert 1 <= len(chosen.candidates) <= workers + 1
    assert all(c.result.converged for c in chosen.candidates)
    never = {"stop": jaxem.Stop(loglik_rtol=1e-30), "max_steps": 10**8, "callback": hook(), **OPTIONS}
    with pytest.raises(KeyboardInterrupt):
        jaxem.select(TIED[1:], data, workers=workers, **never)
    assert time.perf_counter() - at[-1] < 5


def test_threads_compute_in_the_precision_of_their_caller(data, monkeypatch):
    seen = []

    def failing(*_, **__):
        seen.append(jnp.zeros(()).dtype)
        raise jaxem.FitError

    monkeypatch.setattr(selection, "fit", failing)
    with jax.enable_x64(True), pytest.raises(jaxem.FitError):
        jaxem.select(TIED, data.astype(float), workers=2, **OPTIONS)
    assert seen == [np.float64] * 3


def test_a_degenerate_fit_is_not_chosen(data):
    # Repeated rows make a component of no width: its likelihood has no bound but the floor.
    tight = np.concatenate([np.repeat(data[:1] + 50, 20, axis=0), data])
    labels = (np.arange(len(tight)) >= 20).astype(np.int32)
    spurious = jaxem.fit(jaxem.GaussianMixture(2), tight, init=jaxem.init.Labels(labels))
    regular = jaxem.fit(jaxem.GaussianMixture(1), tight, key=jax.random.key(0))
    candidates = [jaxem.Candidate(r.model, r, 0, float(jaxem.bic(r, tight))) for r in (spurious, regular)]
    assert candidates[0].degenerate and candidates[0].score < candidates[1].score
    assert jaxem.Selection(tuple(candidates), "bic").best is candidates[1]


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
