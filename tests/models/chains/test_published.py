"""Published and peer-computed log-likelihoods of hidden Markov and Markov-switching models, and hmmlearn step by step."""

import warnings

import jax
import numpy as np
import pytest
from support import DATA

import jaxem

pytestmark = pytest.mark.published

TIGHT = jaxem.Stop(loglik_rtol=1e-12)


def series(name):
    return np.loadtxt(DATA / f"{name}.csv", skiprows=1)


def fit(model, x, **options):
    return jaxem.fit(model, x, key=jax.random.key(0), stop=TIGHT, max_steps=3000, **options)


@pytest.mark.parametrize(("k", "wanted"), [(2, -342.3183), (3, -329.4603), (4, -327.8316)])
def test_earthquakes_stationary(x64, k, wanted):
    """Zucchini and MacDonald (2009), section 3.3; -loglik as printed there, to their four digits."""
    result = fit(jaxem.HMM(k, jaxem.Poisson(), initial="stationary"), series("earthquakes"), n_restarts=16)
    assert abs(float(result.loglik) - wanted) < 1e-4


@pytest.mark.parametrize(("k", "n_restarts", "wanted"), [(3, 20, -328.5275), (4, 512, -326.2850)])
def test_earthquakes_free(x64, k, n_restarts, wanted):
    """Two states are in test_models_hmm; the best of four states is rare among starts."""
    result = fit(jaxem.HMM(k, jaxem.Poisson()), series("earthquakes"), n_restarts=n_restarts)
    assert abs(float(result.loglik) - wanted) < 1e-4


@pytest.mark.parametrize(("initial", "wanted"), [("stationary", -508.63592), ("free", -508.30999)])
def test_federal_funds_rate(x64, initial, wanted):
    """A mean that switches, one variance: Stata's manual of mswitch; statsmodels 0.15 for the smoothed regimes."""
    x = series("fedfunds")
    model = jaxem.HMM(2, jaxem.Gaussian("tied"), initial=initial)
    result = fit(model, x[:, None], n_restarts=4)
    assert abs(float(result.loglik) - wanted) < 1e-5
    if initial == "stationary":
        order = np.argsort(result.params["emission"]["mean"][:, 0])
        np.testing.assert_allclose(result.params["emission"]["mean"][order, 0], [3.708770, 9.556793], atol=1e-4)
        stay = np.diagonal(result.params["transition"])[order]
        np.testing.assert_allclose(stay, [0.982094, 1 - 0.050359], atol=1e-5)
        durations = np.asarray(jaxem.expected_durations(result.params))[order]
        np.testing.assert_allclose(durations, [1 / (1 - 0.982094), 1 / 0.050359], rtol=1e-3)


def test_returns_on_their_own_lag(x64):
    """Everything switches: statsmodels' example -745.7977; as regression on inputs and as autoregression."""
    x = series("areturns")
    lag = fit(jaxem.HMM(2, jaxem.AutoRegression(order=1), initial="stationary"), x, n_restarts=4)
    inputs = fit(
        jaxem.HMM(2, jaxem.LinearRegression(), initial="stationary"), {"y": x[1:], "inputs": x[:-1, None]}, n_restarts=4
    )
    for result in (lag, inputs):
        assert abs(float(result.loglik) + 745.7977) < 1e-4


def test_federal_funds_rate_on_its_lag(x64):
    """Coefficients switch, the variance is shared: Stata's -264.71069."""
    model = jaxem.HMM(2, jaxem.LinearRegression(switching_variance=False), initial="stationary")
    result = fit(model, jaxem.lagged(series("fedfunds"), 1), n_restarts=4)
    assert abs(float(result.loglik) + 264.71069) < 1e-5


#: Hamilton (1989) as statsmodels 0.15 refits it.
HAMILTON = {
    "transition": np.array([[0.7546709604300215, 0.2453290395699785], [0.09591532637268589, 0.9040846736273141]]),
    "mean": np.array([-0.3588127040343695, 1.1635165514716663]),
    "coefficients": np.array([0.013487098193087771, -0.05752116181623554, -0.24698327764365302, -0.21292139059480875]),
    "variance": np.array(0.5913683944259132),
}


def test_hamiltons_business_cycle(x64):
    """-181.26339 at the published parameters and at the optimum that any start finds."""
    x, model = series("hamilton_rgnp"), jaxem.MarkovAutoregression(n_regimes=2, order=4)
    np.testing.assert_allclose(model.log_prob(HAMILTON, x), [-181.26339426], atol=1e-8)
    result = fit(model, x, n_restarts=2)
    assert abs(float(result.loglik) + 181.26339) < 1e-5
    np.testing.assert_allclose(np.sort(result.params["mean"]), HAMILTON["mean"], atol=2e-3)
    assert model.posterior(HAMILTON, x).shape == (131, 2)


# --- peers, where they are installed ---------------------------------------------------------------
def test_smoothed_regimes_are_those_of_statsmodels(x64):
    pytest.importorskip("statsmodels")
    from statsmodels.tsa.regime_switching.markov_autoregression import MarkovAutoregression
    from statsmodels.tsa.regime_switching.markov_regression import MarkovRegression

    x = series("hamilton_rgnp")
    peer = MarkovAutoregression(x, k_regimes=2, order=4, switching_ar=False)
    p = HAMILTON
    at = peer.smooth([p["transition"][0, 0], p["transition"][1, 0], *p["mean"], p["variance"], *p["coefficients"]])
    ours = jaxem.MarkovAutoregression()
    np.testing.assert_allclose(ours.log_prob(p, x)[0], at.llf, rtol=1e-9)
    np.testing.assert_allclose(ours.posterior(p, x), at.smoothed_marginal_probabilities, atol=1e-8)
    np.testing.assert_allclose(ours.filter(p, x), at.filtered_marginal_probabilities, atol=1e-8)

    x = series("areturns")
    params = {
        "transition": np.array([[0.9, 0.1], [0.3, 0.7]]),
        "emission": {
            "intercept": np.array([0.7, 0.2]),
            "coefficients": np.array([[0.1], [0.5]]),
            "variance": np.array([0.5, 2.0]),
        },
    }
    peer = MarkovRegression(x[1:], k_regimes=2, exog=x[:-1], switching_variance=True)
    at = peer.smooth([0.9, 0.3, 0.7, 0.2, 0.1, 0.5, 0.5, 2.0])
    model = jaxem.HMM(2, jaxem.AutoRegression(), initial="stationary")
    np.testing.assert_allclose(model.log_prob(params, x)[0], at.llf, rtol=1e-9)
    np.testing.assert_allclose(model.posterior(params, x), at.smoothed_marginal_probabilities, atol=1e-8)


def hmmlearn_cases():
    """Name: (our emission, parameters, hmmlearn's model with its priors off, data, how to read its parameters)."""
    from hmmlearn import hmm

    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(120, 2)), 0)
    counts = rng.poisson(np.where(np.arange(120) // 20 % 2, 9.0, 3.0)).astype(float)
    codes = rng.integers(4, size=120)
    plain = {"init_params": "", "tol": -np.inf, "n_iter": 20}
    spread = {"full": np.stack([np.eye(2)] * 3), "tied": np.eye(2), "diag": np.ones((3, 2)), "spherical": np.ones(3)}
    for kind, covariance in spread.items():
        peer = hmm.GaussianHMM(3, kind, min_covar=0, means_weight=0, covars_prior=0, covars_weight=0, **plain)
        means = walk[[10, 60, 110]]
        peer.means_, peer.covars_ = means, covariance
        yield f"gaussian-{kind}", jaxem.Gaussian(kind), {"mean": means, "covariance": covariance}, peer, walk
    peer = hmm.PoissonHMM(3, lambdas_prior=0, lambdas_weight=0, **plain)
    peer.lambdas_ = np.array([[2.0], [5.0], [10.0]])
    yield "poisson", jaxem.Poisson(), {"rate": peer.lambdas_}, peer, counts[:, None]
    probs = rng.dirichlet(np.ones(4), 3)
    peer = hmm.CategoricalHMM(3, n_features=4, **plain)
    peer.emissionprob_ = probs
    yield "categorical", jaxem.Categorical(4), {"probs": probs}, peer, codes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = hmm.MultinomialHMM(3, n_trials=6, **plain)
    peer.emissionprob_, peer.n_features = probs, 4
    yield (
        "multinomial",
        jaxem.Multinomial(n_trials=6),
        {"probs": probs},
        peer,
        rng.multinomial(6, probs[np.arange(120) // 9 % 3]),
    )


def read_peer(name, peer):
    if name.startswith("gaussian"):
        covariance = peer.covars_ if name.endswith(("full", "tied")) else peer._covars_
        covariance = covariance[:, 0] if name.endswith("spherical") and np.ndim(covariance) == 2 else covariance
        return {
            "mean": peer.means_,
            "covariance": covariance[0] if name.endswith("tied") and covariance.ndim == 3 else covariance,
        }
    return {"rate": peer.lambdas_} if name == "poisson" else {"probs": peer.emissionprob_}


#: Every emission that hmmlearn has but mixtures.
PEERS = [*(f"gaussian-{kind}" for kind in ("full", "tied", "diag", "spherical")), "poisson", "categorical", "multinomial"]


@pytest.mark.parametrize("name", PEERS)
def test_twenty_steps_of_hmmlearn(x64, name):
    """Its priors off, the same start: log-likelihood to 1e-8, parameters to 1e-6, Viterbi paths identical."""
    pytest.importorskip("hmmlearn")
    cases = {case[0]: case[1:] for case in hmmlearn_cases()}
    emission, start, peer, x = cases[name]
    transition = np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]])
    peer.startprob_, peer.transmat_ = np.array([0.5, 0.3, 0.2]), transition
    init = {"initial": np.array([0.5, 0.3, 0.2]), "transition": transition, "emission": start}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.fit(x[:, None] if x.ndim == 1 else x)
    model = jaxem.HMM(3, emission)
    result = jaxem.fit(model, x, init=init, max_steps=20, stop=jaxem.Stop(None))
    column = x[:, None] if x.ndim == 1 else x
    np.testing.assert_allclose(result.loglik, peer.score(column), rtol=1e-8)
    theirs = {"initial": peer.startprob_, "transition": peer.transmat_, "emission": read_peer(name, peer)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), result.params, theirs)
    path, theirs = np.asarray(model.viterbi(result.params, x)), peer.decode(column)[1]
    if name == "categorical":
        # Moves i, i, j, i and i, j, i, i through two equal symbols tie exactly: only the paths' probability is unique.
        log_transition, log_probs = (np.log(np.maximum(p, 1e-300)) for p in (peer.transmat_, peer.emissionprob_))
        ours, peers = (log_transition[z[:-1], z[1:]].sum() + log_probs[z, x].sum() for z in (path, theirs))
        np.testing.assert_allclose(ours, peers, rtol=1e-9)
    else:
        np.testing.assert_array_equal(path, theirs)
    np.testing.assert_allclose(model.posterior(result.params, x), peer.predict_proba(column), atol=1e-7)


def test_a_step_of_hmmlearns_mixtures(x64):
    """hmmlearn takes covariances about the means of the step before, no maximum: one step, and that difference by hand."""
    hmm = pytest.importorskip("hmmlearn.hmm")
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(120, 2)), 0)
    weights, means = rng.dirichlet(np.full(2, 5.0), 3), walk[[5, 15, 55, 65, 105, 115]]
    start, transition = np.array([0.5, 0.3, 0.2]), np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]])
    peer = hmm.GMMHMM(3, 2, covariance_type="diag", min_covar=0, init_params="", n_iter=1)
    peer.startprob_, peer.transmat_, peer.weights_ = start, transition, weights
    peer.means_, peer.covars_ = means.reshape(3, 2, 2), np.ones((3, 2, 2))
    parts = {"mean": means, "covariance": np.ones((6, 2))}
    init = {"initial": start, "transition": transition, "emission": {"weights": weights, "parts": parts}}
    model = jaxem.HMM(3, jaxem.FamilyMixture(2, jaxem.Gaussian("diag")))
    result = jaxem.fit(model, walk, init=init, max_steps=1, stop=jaxem.Stop(None))
    np.testing.assert_allclose(result.history[0], peer.score(walk), rtol=1e-8)
    peer.fit(walk)
    new = result.params["emission"]["parts"]
    moved = np.square(np.asarray(new["mean"]) - means)
    parts = {"mean": peer.means_.reshape(6, 2), "covariance": peer.covars_.reshape(6, 2) - moved}
    theirs = {"initial": peer.startprob_, "transition": peer.transmat_, "emission": {"weights": peer.weights_, "parts": parts}}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), result.params, theirs)


def test_old_faithful(x64, faithful):
    """Two full covariances: hmmlearn 0.3.3 without its priors, -1096.1040683."""
    result = fit(jaxem.HMM(2, jaxem.Gaussian()), faithful, n_restarts=2)
    assert abs(float(result.loglik) + 1096.1040683) < 1e-6
