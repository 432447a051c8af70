"""Information criteria, and the choice among models."""

import dataclasses
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.engine.restarts import tier
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


@pytest.mark.parametrize(
    ("model", "restrained", "count"),
    [
        (jaxem.GaussianMixture(2, "diag"), (), 1 + 10 + 10),
        (jaxem.GaussianMixture(2, "diag"), ("weights",), 20),
        (jaxem.GaussianMixture(2, "diag"), ("weights", "components.covariance"), 10),
        (jaxem.Mixture(3, jaxem.Poisson(zero_inflated=True)), ("components.rate",), 2),
        # Fewer than coordinates: by rotations of the loadings, 1 of 2 factors and 3 of 3; no more than a covariance has.
        (jaxem.FactorAnalysis(2), (), 5 + 5 + 9),
        (jaxem.FactorAnalysis(2), ("mean",), 5 + 9),
        (jaxem.FactorAnalysis(2), ("loadings",), 5 + 5),
        (jaxem.FactorAnalysis(3), (), 20),
        (jaxem.PPCA(2), ("noise",), 5 + 9),
        (jaxem.HMM(3, jaxem.Poisson(), transition=jaxem.left_right(3), initial="fixed"), (), 2 + 15),
        (jaxem.HMM(3, jaxem.Poisson(), transition=jaxem.left_right(3), initial="fixed"), ("transition",), 15),
        (jaxem.StateSpace(2, fixed={"state_noise": np.eye(2)}), ("observation_noise",), 4 + 10 + 2 + 3 - 1),
    ],
)
def test_what_was_frozen_or_tied_does_not_count(result, model, restrained, count):
    x = np.random.default_rng(0).poisson(4.0, (60, 5)).astype(result.loglik.dtype)
    other = dataclasses.replace(result, model=model, restrained=restrained)
    np.testing.assert_allclose(jaxem.aic(other, x) + 2 * result.loglik, 2 * count, rtol=1e-4)
    np.testing.assert_allclose(jaxem.bic(other, x, n_data=60) + 2 * result.loglik, np.log(60) * count, rtol=1e-4)


def test_a_result_remembers_what_was_frozen_or_tied(data, result, tmp_path):
    model = jaxem.Mixture(2, jaxem.Gamma())
    options = {"frozen": "weights", "tied": (("components.rate", "components.shape"),)}
    chosen = jaxem.select([model], data, key=jax.random.key(0), max_steps=2, **options).best
    assert chosen.result.restrained == ("components.shape", "weights") and chosen.n_free_params == 4
    np.testing.assert_allclose(chosen.score + 2 * chosen.result.loglik, np.log(len(data)) * 4, rtol=1e-4)
    traced = jax.eval_shape(lambda x: jaxem.fit(model, x, key=jax.random.key(0), **options), data)
    assert traced.restrained == chosen.result.restrained
    jaxem.save(tmp_path / "fit.npz", chosen.result)
    assert jaxem.load(tmp_path / "fit.npz").restrained == traced.restrained
    # Inside jit too.
    frozen = dataclasses.replace(result, restrained=("weights",))
    np.testing.assert_allclose(jax.jit(jaxem.aic)(frozen, data), jaxem.aic(frozen, data), rtol=1e-6)
    assert float(jaxem.aic(result, data) - jaxem.aic(frozen, data)) == pytest.approx(2, rel=1e-3)


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


# --- maxima made by chance -------------------------------------------------------------------
def two_clusters(seed, d=2):
    """(60, D): half around 0, half around 6 sqrt(2 / D) in every column, unit spheres."""
    rng = np.random.default_rng(1000 + seed)
    return np.r_[rng.normal(0, 1, (30, d)), rng.normal(6 * np.sqrt(2 / d), 1, (30, d))]


def test_more_restarts_do_not_find_a_third_cluster(x64):
    models, x = [jaxem.GaussianMixture(k) for k in (2, 3)], two_clusters(13)
    options = {"key": jax.random.key(0), "n_restarts": 32}
    misled = jaxem.select(models, x, guard=False, **options)
    assert misled.best.model == models[1] and misled.best.result.restarts.spurious is None
    chosen = jaxem.select(models, x, **options)
    assert chosen.best.model == models[0]
    third = chosen.candidates[1]
    lost = np.asarray(third.result.restarts.spurious)
    assert lost.any() and not lost.all() and not third.spurious
    assert f"{lost.sum()} of 32 restarts passed over" in str(chosen)
    assert float(third.result.loglik) < float(misled.candidates[1].result.loglik)


def test_a_candidate_without_any_other_restart_loses(x64):
    models, x = [jaxem.GaussianMixture(k) for k in (2, 3)], two_clusters(13)
    third = jaxem.select(models[1:], x, key=jax.random.key(0), n_restarts=32).candidates[0]
    lost = third.result.restarts
    all_lost = dataclasses.replace(third.result, restarts=dataclasses.replace(lost, spurious=jnp.ones_like(lost.spurious)))
    better = dataclasses.replace(third, result=all_lost, score=third.score - 100)
    assert better.spurious and jaxem.Selection((better, third), "bic").best is third
    assert "32 of 32 restarts: a component" in str(jaxem.Selection((better, third), "bic"))


@pytest.mark.published
@pytest.mark.parametrize("n_restarts", [8, 32, 128])
def test_bic_finds_the_two_clusters_that_made_the_data(x64, n_restarts):
    """19 of 20; scikit-learn 17, mclust 20."""
    models = [jaxem.GaussianMixture(k) for k in range(1, 7)]
    found = [jaxem.select(models, two_clusters(s), key=jax.random.key(0), n_restarts=n_restarts).best.model for s in range(20)]
    assert sum(model.n_components == 2 for model in found) >= 19


def test_the_prior_of_mclust(x64):
    x = two_clusters(0, 3)
    prior = jaxem.NormalInverseWishart.mclust(x, 4)
    np.testing.assert_allclose(prior.scale, np.cov(x.T) / 4 ** (2 / 3))
    np.testing.assert_allclose(prior.mean, x.mean(0))
    assert (prior.strength, prior.df) == (0.01, 5)
    round_ = jaxem.NormalInverseWishart.mclust(x, 4, "spherical")
    np.testing.assert_allclose(round_.scale, np.cov(x.T).trace() / 3 / 4 ** (2 / 3))
    one = jaxem.select([jaxem.GaussianMixture(1)], x[:, :2], key=jax.random.key(0), prior="mclust")
    n, rows = 60, x[:, :2]  # the mode in closed form: Fraley and Raftery 2007, table 2
    scale = np.cov(rows.T) + (n - 1) * np.cov(rows.T)
    wanted = scale / (4 + n + 2 + 2)
    np.testing.assert_allclose(one.best.result.params["components"]["covariance"][0], wanted, rtol=1e-5)
    with pytest.raises(ValueError, match=r"prior='mclust' is for mixtures of Gaussians"):
        jaxem.select([jaxem.Mixture(2, jaxem.Poisson())], np.ones(9, int), key=jax.random.key(0), prior="mclust")
    with pytest.raises(ValueError, match=r"prior must be None or 'mclust'"):
        jaxem.select([jaxem.GaussianMixture(1)], x, key=jax.random.key(0), prior="flat")
