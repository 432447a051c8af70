"""Gaussian mixtures against published optima, scikit-learn, and closed forms."""

import warnings
from collections import Counter

import jax
import numpy as np
import pytest
from support import clusters

import jaxem
from jaxem import Status

TIGHT = jaxem.Stop(loglik_rtol=1e-14)
SHAPES = ["full", "tied", "diag", "spherical"]


def test_old_faithful_full_two_components(x64, faithful):
    result = jaxem.fit(jaxem.GaussianMixture(2), faithful, key=jax.random.key(0), n_restarts=8, stop=TIGHT)
    # mclust, scikit-learn and flexmix agree on these digits.
    assert float(result.loglik) == pytest.approx(-1130.2639601847, abs=1e-8)
    order = np.argsort(-np.asarray(result.params["weights"]))
    np.testing.assert_allclose(result.params["weights"][order], [0.6441271322, 0.3558728678], atol=1e-6)
    expected = [[4.289661996, 79.968115453], [2.036388481, 54.478516639]]
    np.testing.assert_allclose(result.params["components"]["mean"][order], expected, atol=1e-5)
    assert bool(result.converged) and result.stop_reason == "loglik_rtol"


def test_old_faithful_tied_three_components(x64, faithful):
    result = jaxem.fit(jaxem.GaussianMixture(3, "tied"), faithful, key=jax.random.key(0), n_restarts=8, stop=TIGHT)
    assert float(result.loglik) == pytest.approx(-1126.315927824, abs=1e-6)


# From the species labels, R's mclust run to convergence.
IRIS = {"spherical": -384.314095061, "diag": -306.860460506, "tied": -256.354043126, "full": -180.185477131}


@pytest.mark.parametrize("covariance", SHAPES)
def test_iris_from_species(x64, iris, covariance):
    species = jaxem.init.Labels(np.repeat([0, 1, 2], 50))
    result = jaxem.fit(jaxem.GaussianMixture(3, covariance), iris, init=species, stop=TIGHT)
    assert float(result.loglik) == pytest.approx(IRIS[covariance], abs=1e-6)


@pytest.mark.parametrize("covariance", SHAPES)
def test_equal_to_scikit_learn_from_the_same_start(x64, covariance):
    from sklearn.mixture import GaussianMixture

    x = clusters(600, 3, 3, seed=1, spread=5)
    rng = np.random.default_rng(0)
    means = x[rng.choice(len(x), 3, replace=False)]
    spread = np.cov(x.T)
    start = {
        "full": (np.stack([spread] * 3), np.stack([np.linalg.inv(spread)] * 3)),
        "tied": (spread, np.linalg.inv(spread)),
        "diag": (np.stack([np.diag(spread)] * 3), np.stack([1 / np.diag(spread)] * 3)),
        "spherical": (np.full(3, np.trace(spread) / 3), np.full(3, 3 / np.trace(spread))),
    }[covariance]
    peer = GaussianMixture(
        3, covariance_type=covariance, reg_covar=0, tol=1e-14, max_iter=10_000,
        weights_init=np.full(3, 1 / 3), means_init=means, precisions_init=start[1],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tolerance of 1e-14 may never be met
        peer.fit(x)
    init = {"weights": np.full(3, 1 / 3), "components": {"mean": means, "covariance": start[0]}}
    stop = jaxem.Stop(loglik_rtol=None, param_rtol=1e-12)
    result = jaxem.fit(jaxem.GaussianMixture(3, covariance), x, init=init, stop=stop)
    assert float(result.loglik) == pytest.approx(peer.score(x) * len(x), abs=1e-6)
    np.testing.assert_allclose(result.params["weights"], peer.weights_, atol=1e-6)
    np.testing.assert_allclose(result.params["components"]["mean"], peer.means_, atol=1e-6)
    np.testing.assert_allclose(result.params["components"]["covariance"], peer.covariances_, atol=1e-6)
    np.testing.assert_allclose(result.model.posterior(result.params, x), peer.predict_proba(x), atol=1e-6)
    assert (np.asarray(result.model.predict(result.params, x)) == peer.predict(x)).all()
    np.testing.assert_allclose(result.model.log_prob(result.params, x), peer.score_samples(x), atol=1e-6)


def test_galaxies_optima(x64, galaxies):
    found = Counter()
    for start in (jaxem.init.RandomRows(), jaxem.init.KMeansPlusPlus()):
        result = jaxem.fit(
            jaxem.GaussianMixture(3), galaxies, key=jax.random.key(1), init=start, n_restarts=200,
            stop=jaxem.Stop(loglik_rtol=1e-12), max_steps=50_000,
        )  # fmt: skip
        loglik, status = np.asarray(result.restarts.loglik), np.asarray(result.restarts.status)
        regular = status != Status.DEGENERATE
        assert loglik[regular].max() < -203.178  # the best one known without a component at its floor
        assert float(result.loglik) == pytest.approx(-203.1792280, abs=1e-5)
        found.update(np.round(loglik[regular], 3))
    assert {-203.179, -209.733, -212.080} <= set(found)


def test_a_component_on_one_row_is_degenerate_and_never_wins(x64, galaxies):
    means = np.array([[9.172], [20.0], [30.0]])
    narrow = {"weights": np.full(3, 1 / 3), "components": {"mean": means, "covariance": np.array([[[1e-6]], [[9.0]], [[9.0]]])}}
    regular = {"weights": np.full(3, 1 / 3), "components": {"mean": means, "covariance": np.full((3, 1, 1), 9.0)}}
    both = jax.tree.map(lambda *x: np.stack(x), narrow, regular)
    model = jaxem.GaussianMixture(3, floor=1e-20)  # low enough for the spike to be worth its while
    result = jaxem.fit(model, galaxies, init=jaxem.init.Each(both), n_restarts=2)
    status = np.asarray(result.restarts.status)
    assert status.tolist() == [Status.DEGENERATE, Status.CONVERGED]
    assert result.restarts.loglik[0] > result.restarts.loglik[1]  # higher, and yet not the winner
    assert float(result.loglik) == pytest.approx(float(result.restarts.loglik[1]))


@pytest.mark.parametrize("covariance", SHAPES)
def test_floor_is_the_constrained_maximum(x64, covariance):
    """With the floor active the objective still rises, and no covariance inside the constraint does better."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(60, 2)), [[5.0, 5.0]] * 20])
    labels = jaxem.init.Labels((np.arange(80) >= 60).astype(int))
    result = jaxem.fit(jaxem.GaussianMixture(2, covariance, floor=1e-3), x, init=labels, stop=TIGHT, max_steps=50)
    rising = np.diff(np.asarray(result.history))
    assert (rising > -1e-9).all()
    if covariance != "tied":
        assert int(result.status) == Status.DEGENERATE


@pytest.mark.published
def test_two_groups_in_heights(x64):
    """Simulated heights of two groups: every parameter within three standard errors of the truth."""
    rng = np.random.default_rng(2)
    n = 4_000
    tall = rng.random(n) < 0.5
    x = np.where(tall, rng.normal(178, 7, n), rng.normal(158, 6, n))[:, None]
    result = jaxem.fit(jaxem.GaussianMixture(2), x, key=jax.random.key(0), n_restarts=4, stop=TIGHT)
    order = np.argsort(np.asarray(result.params["components"]["mean"])[:, 0])
    got = np.concatenate(
        [
            [result.params["weights"][order][0]],
            result.params["components"]["mean"][order, 0],
            np.sqrt(result.params["components"]["covariance"][order, 0, 0]),
        ]
    )
    truth = np.array([0.5, 158, 178, 6, 7])

    def log_prob(t):
        params = {
            "weights": jax.numpy.stack([t[0], 1 - t[0]]),
            "components": {"mean": t[1:3, None], "covariance": (t[3:] ** 2)[:, None, None]},
        }
        return result.model.log_prob(params, x).sum()

    information = -np.asarray(jax.hessian(log_prob)(jax.numpy.asarray(got)))
    errors = np.sqrt(np.diag(np.linalg.inv(information)))
    assert (np.abs(got - truth) < 3 * errors).all()


@pytest.mark.parametrize("covariance", SHAPES)
def test_prior_gives_the_posterior_mode(x64, covariance):
    """One component: the mode of the normal-inverse-Wishart posterior in closed form."""
    x = clusters(50, 2, 1, seed=3)
    n, d = x.shape
    mean0, strength, df = np.array([1.0, -1.0]), 4.0, 7.0
    scatter = np.array([[2.0, 0.3], [0.3, 1.0]])
    scale = {"full": scatter, "tied": scatter, "diag": np.diag(scatter), "spherical": np.array(1.5)}[covariance]
    prior = jaxem.NormalInverseWishart(mean0, strength, df, scale)
    result = jaxem.fit(
        jaxem.GaussianMixture(1, covariance, prior=prior), x, init=jaxem.init.Labels(np.zeros(n, int)), stop=TIGHT
    )
    mean = (n * x.mean(0) + strength * mean0) / (n + strength)
    gap = x.mean(0) - mean0
    total = n * np.cov(x.T, bias=True) + strength * n / (n + strength) * np.outer(gap, gap)
    expected = {
        "full": (scatter + total) / (n + df + d + 2),
        "tied": (scatter + total) / (n + df + d + 2),
        "diag": (np.diag(scatter) + np.diag(total)) / (n + df + 3),
        "spherical": (1.5 + np.trace(total)) / (n * d + df + 2 + d),
    }[covariance]
    components = result.params["components"]
    np.testing.assert_allclose(components["mean"][0], mean, rtol=1e-9)
    got = components["covariance"] if covariance == "tied" else components["covariance"][0]
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    assert result.objective != result.loglik


def test_dirichlet_prior_on_weights(x64):
    x = clusters(100, 1, 2, seed=4, spread=20)
    model = jaxem.GaussianMixture(2, weights_prior=jaxem.Dirichlet(11.0))
    result = jaxem.fit(model, x, key=jax.random.key(0), n_restarts=4, stop=TIGHT)
    plain = jaxem.fit(jaxem.GaussianMixture(2), x, key=jax.random.key(0), n_restarts=4, stop=TIGHT)
    counts = np.sort(np.asarray(plain.params["weights"])) * 100  # well separated: the responsibilities do not move
    np.testing.assert_allclose(np.sort(result.params["weights"]), (counts + 10) / 120, atol=1e-4)


@pytest.mark.published
@pytest.mark.parametrize("covariance", SHAPES)
def test_sample_and_refit(dtype, covariance):
    x = clusters(400, 2, 2, seed=5, spread=4).astype(dtype)
    result = jaxem.fit(jaxem.GaussianMixture(2, covariance), x, key=jax.random.key(0), n_restarts=4)
    drawn = result.model.sample(jax.random.key(1), result.params, 20_000)
    assert drawn.shape == (20_000, 2) and drawn.dtype == dtype
    again = jaxem.fit(jaxem.GaussianMixture(2, covariance), drawn, init=result)
    # 20 000 draws: means within about five standard errors.
    scale = float(np.asarray(x).std())
    np.testing.assert_allclose(again.params["components"]["mean"], result.params["components"]["mean"], atol=0.05 * scale)
    np.testing.assert_allclose(again.params["weights"], result.params["weights"], atol=0.02)


def test_covariance_matrices_of_each_shape():
    from jaxem.families.gaussian import covariance_matrices

    mean = np.zeros((2, 3))
    tied = covariance_matrices({"mean": mean, "covariance": np.eye(3)}, "tied")
    diag = covariance_matrices({"mean": mean, "covariance": np.arange(1, 7).reshape(2, 3)}, "diag")
    spherical = covariance_matrices({"mean": mean, "covariance": np.array([2.0, 3.0])}, "spherical")
    assert tied.shape == diag.shape == spherical.shape == (2, 3, 3)
    assert diag[1, 2, 2] == 6 and spherical[1, 0, 0] == 3 and spherical[1, 0, 1] == 0
