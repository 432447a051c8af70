"""Tiny chains of every kind against the sum over all paths, written without anything of jaxem."""

import itertools

import jax
import numpy as np
import pytest
from scipy import stats

import jaxem

X = np.array([1.0, 4.0, 0.0, 7.0, 3.0])
RATE = np.array([1.0, 4.0, 7.0])
FULL = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])
BAND = np.array([[0.6, 0.4, 0], [0.2, 0.5, 0.3], [0, 0.3, 0.7]])
BAKIS = np.array([[0.6, 0.4, 0], [0, 0.5, 0.5], [0, 0, 1]])
START = np.array([0.2, 0.5, 0.3])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def stationary(transition):
    return np.linalg.matrix_power(transition, 2000)[0]


def enumerated(initial, transition, density):
    """Log-likelihood, (T, K) posterior and most probable path; density(t, z) of step t given all states."""
    n_steps, k = len(X), len(initial)
    paths = list(itertools.product(range(k), repeat=n_steps))
    mass = np.array([
        initial[z[0]]
        * np.prod([transition[i, j] for i, j in itertools.pairwise(z)])
        * np.prod([density(t, z) for t in range(n_steps)])
        for z in paths
    ])  # fmt: skip
    posterior = np.zeros((n_steps, k))
    for z, share in zip(paths, mass / mass.sum()):
        posterior[np.arange(n_steps), z] += share
    return np.log(mass.sum()), posterior, paths[mass.argmax()]


def agree(model, params, x, wanted, skip=0):
    loglik, posterior, path = wanted
    np.testing.assert_allclose(model.log_prob(params, x)[0], loglik, rtol=1e-10)
    np.testing.assert_allclose(model.posterior(params, x), posterior[skip:], atol=1e-10)
    assert tuple(np.asarray(model.viterbi(params, x))) == path[skip:]


KINDS = {
    "free": ({}, START, FULL),
    "fixed": ({"initial": "fixed", "start": START}, START, FULL),
    "uniform": ({"initial": "uniform"}, np.full(3, 1 / 3), FULL),
    "stationary": ({"initial": "stationary"}, stationary(FULL), FULL),
    "banded": ({"transition": jaxem.banded(3)}, START, BAND),
    "banded-stationary": ({"transition": jaxem.banded(3), "initial": "stationary"}, stationary(BAND), BAND),
    "left-right": ({"transition": jaxem.left_right(3), "initial": "fixed"}, np.array([1.0, 0, 0]), BAKIS),
    "fixed-in-part": ({"transition": jaxem.Transition(fixed=np.where(FULL > 0.45, FULL, np.nan))}, START, FULL),
    "sticky": ({"transition": jaxem.sticky(3, 9.0)}, START, FULL),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_chain(kind):
    options, initial, transition = KINDS[kind]
    model = jaxem.HMM(3, jaxem.Poisson(), **options)
    params = {"transition": transition, "emission": {"rate": RATE}}
    if model.initial in ("free", "fixed"):
        params["initial"] = initial
    agree(model, params, X, enumerated(initial, transition, lambda t, z: stats.poisson.pmf(X[t], RATE[z[t]])))


def test_autoregression():
    """A step looks back at the one before; the first is given, and its state plays no part."""
    slope, level, scale = np.array([0.5, -0.2]), np.array([0.0, 3.0]), np.array([1.0, 2.0])
    transition = np.array([[0.8, 0.2], [0.3, 0.7]])
    params = {
        "initial": np.array([0.4, 0.6]),
        "transition": transition,
        "emission": {"intercept": level, "coefficients": slope[:, None], "variance": scale**2},
    }

    def density(t, z):
        return stats.norm.pdf(X[t], level[z[t]] + slope[z[t]] * X[t - 1], scale[z[t]]) if t else 1.0

    # The chain begins with the second step: the first has no state, or one that says nothing of what follows.
    before = np.linalg.solve(transition.T, params["initial"])
    agree(jaxem.HMM(2, jaxem.AutoRegression()), params, X, enumerated(before, transition, density), skip=1)


def test_autoregression_about_a_switching_mean():
    """The density of a step depends on the regime before, too (Hamilton 1989)."""
    mean, slope, variance = np.array([0.5, 4.0]), 0.4, 1.5
    transition = np.array([[0.8, 0.2], [0.3, 0.7]])
    params = {"transition": transition, "mean": mean, "coefficients": np.array([slope]), "variance": np.array(variance)}

    def density(t, z):
        return stats.norm.pdf(X[t], mean[z[t]] + slope * (X[t - 1] - mean[z[t - 1]]), variance**0.5) if t else 1.0

    wanted = enumerated(stationary(transition), transition, density)
    agree(jaxem.MarkovAutoregression(n_regimes=2, order=1), params, X, wanted, skip=1)
