"""QTL interval mapping (Lander and Botstein 1989) from public pieces, on a simulated backcross."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import jaxem
from jaxem.numerics.logs import lse, safe_log

MARKERS = np.arange(0.0, 101.0, 20.0)  # cM
TRUTH = 47.0
N = 300


def recombination(distance):
    """Haldane's (1919) map function, distance in cM."""
    return -np.expm1(-2 * np.abs(distance) / 100) / 2


@pytest.fixture(scope="module")
def backcross():
    """(N, M) marker genotypes, 0 or 1, and (N,) phenotypes whose mean is half a standard deviation up or down."""
    rng = np.random.default_rng(0)
    places = np.sort(np.append(MARKERS, TRUTH))
    moved = rng.random((N, len(places) - 1)) < recombination(np.diff(places))
    first = rng.integers(2, size=(N, 1))
    genotype = np.concatenate([first, (first + moved.cumsum(1)) % 2], 1)
    at = np.searchsorted(places, TRUTH)
    return np.delete(genotype, at, 1), genotype[:, at] - 0.5 + rng.normal(size=N)


def probabilities(markers, position):
    """(N, 2) probability of each genotype at `position` given the markers to its left and right."""
    left = np.clip(np.searchsorted(MARKERS, position, "right") - 1, 0, len(MARKERS) - 2)
    stay = lambda k, distance: np.where(markers[:, [k]] == [0, 1], 1 - recombination(distance), recombination(distance))  # noqa: E731
    joint = stay(left, position - MARKERS[left]) * stay(left + 1, MARKERS[left + 1] - position)
    return joint / joint.sum(1, keepdims=True)


def natural(params):
    mean, variance = params["mean"], params["variance"]
    constant = -(mean**2 / variance + jnp.log(2 * jnp.pi * variance)) / 2
    return {"square": -1 / (2 * variance), "linear": mean / variance, "constant": constant}


def log_marginal(natural, data):
    y = data["y"][:, None]
    return lse(safe_log(data["genotype"]) + natural["square"] * y**2 + natural["linear"] * y + natural["constant"], 1)


def m_step(stats, params):
    del params
    mean = stats["linear"] / stats["constant"]
    return {"mean": mean, "variance": (stats["square"] - stats["linear"] @ mean) / stats["constant"].sum()}


MODEL = jaxem.log_marginal(
    natural=natural,
    log_marginal=log_marginal,
    m_step=m_step,
    # Equal means: the first posterior is the prior, the first M-step a regression on the expected genotype.
    init={"mean": np.zeros(2), "variance": 1.0},
    constraints={"mean": jaxem.constraints.Real(), "variance": jaxem.constraints.Positive()},
)


@jax.jit
def scan(y, genotype):
    """Fits at all positions at once; `genotype` (positions, N, 2)."""
    one = lambda g: jaxem.fit(MODEL, {"y": y, "genotype": g}, stop=jaxem.Stop(loglik_rtol=1e-13)).loglik  # noqa: E731
    return jax.vmap(one)(genotype)


def normal_loglik(residual):
    """Log-likelihood of a normal density at the maximum over its variance."""
    return -len(residual) / 2 * (np.log(2 * np.pi * np.mean(residual**2)) + 1)


def test_scan_equals_direct_maximisation(x64, backcross):
    markers, y = backcross
    positions = np.array([0.0, 7.0, 31.0, 47.0, 52.5, 88.0, 100.0])
    genotype = np.stack([probabilities(markers, at) for at in positions])

    def minus_loglik(theta, p):
        residual = (y[:, None] - theta[:2]) / np.exp(theta[2])
        return -np.log((p * np.exp(-(residual**2) / 2)).sum(1) / np.sqrt(2 * np.pi)).sum() + len(y) * theta[2]

    direct = [-minimize(minus_loglik, [-0.1, 0.1, 0.0], (p,), method="BFGS", options={"gtol": 1e-6}).fun for p in genotype]
    np.testing.assert_allclose(scan(y, genotype), direct, atol=1e-8)


def test_lod_curve(x64, backcross):
    """Its peak lies near the truth; at a marker it is the score of a regression on the marker."""
    markers, y = backcross
    positions = np.arange(0.0, 101.0, 1.0)
    loglik = scan(y, np.stack([probabilities(markers, at) for at in positions]))
    lod = (np.asarray(loglik) - normal_loglik(y - y.mean())) / np.log(10)
    assert abs(positions[lod.argmax()] - TRUTH) <= 5 and lod.max() > 3
    for k, marker in enumerate(MARKERS):
        group = markers[:, k] == 1
        residual = y - np.where(group, y[group].mean(), y[~group].mean())
        expected = (normal_loglik(residual) - normal_loglik(y - y.mean())) / np.log(10)
        np.testing.assert_allclose(lod[positions == marker], expected, atol=1e-8)
