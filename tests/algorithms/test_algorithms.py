"""Every algorithm on a mixture, a chain and a model from a function: it rises, and ends where it must."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linkage import COUNTS
from problems import PROBLEMS, linkage, rises
from scipy.stats import multivariate_normal, poisson

import jaxem


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


#: An initial probability goes to zero: its free coordinate to minus infinity, where gradients fade before it arrives.
CLOSE = {"mixture": 1e-6, "chain": 2e-3, "log_joint": 1e-6}
ALGORITHMS = {
    "GEM by Adam": jaxem.GEM(optax.adam(0.03), 10),
    "ECM over every leaf": jaxem.ECM(),
    "hard": jaxem.HardEM(),
    "Squarem over ECM": jaxem.Squarem(algorithm=jaxem.ECM()),
    "Anderson over EM by Newton": jaxem.Anderson(algorithm=jaxem.EM(jaxem.newton())),
}


@pytest.fixture(scope="module")
def by_em():
    """Where plain EM ends."""
    with jax.enable_x64(True):
        return {name: float(jaxem.fit(**problem(), stop=jaxem.Stop(1e-13)).loglik) for name, problem in PROBLEMS.items()}


@pytest.mark.parametrize(
    "problem", [name if name == "log_joint" else pytest.param(name, marks=pytest.mark.published) for name in PROBLEMS]
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_rises_to_the_optimum_of_em(algorithm, problem, by_em):
    result = jaxem.fit(**PROBLEMS[problem](), algorithm=ALGORITHMS[algorithm], max_steps=3_000, stop=jaxem.Stop(1e-11))
    assert result.converged and rises(result.history)
    if algorithm == "hard":  # its own law: what rises is the classification log-likelihood, which lies below
        assert float(result.loglik) < by_em[problem] - 1
        assert np.isclose(result.loglik, CLASSIFICATION[problem](PROBLEMS[problem](), int(result.n_steps)), rtol=1e-12)
    else:
        assert abs(float(result.loglik) - by_em[problem]) < CLOSE[problem]


# --- hard EM, written out in NumPy ---------------------------------------------------------------
def hard_mixture(problem, n_steps):
    """Classification EM (Celeux and Govaert 1992): classify, then estimate by class."""
    x, weights = problem["data"], problem["init"]["weights"]
    mean, covariance = problem["init"]["components"]["mean"], problem["init"]["components"]["covariance"]
    for _ in range(n_steps + 1):
        parts = zip(weights, mean, covariance, strict=True)
        joint = np.stack([np.log(w) + multivariate_normal(m, c).logpdf(x) for w, m, c in parts], 1)
        loglik, z = joint.max(1).sum(), joint.argmax(1)
        members = [x[z == k] for k in range(2)]
        weights = np.array([len(m) for m in members]) / len(x)
        mean, covariance = [m.mean(0) for m in members], [np.cov(m.T, bias=True) for m in members]
    return loglik


def hard_chain(problem, n_steps):
    """Viterbi training (Juang and Rabiner 1990): the best path, then relative counts along it."""
    y, init = problem["data"], problem["init"]
    initial, transition, rate = init["initial"], init["transition"], init["emission"]["rate"]
    for _ in range(n_steps + 1):
        with np.errstate(divide="ignore"):
            log_initial, log_transition = np.log(initial), np.log(transition)
        scores = poisson(rate).logpmf(y[:, None])
        best, back = log_initial + scores[0], []
        for score in scores[1:]:
            step = best[:, None] + log_transition
            back.append(step.argmax(0))
            best = step.max(0) + score
        loglik, path = best.max(), [best.argmax()]
        for pointer in reversed(back):
            path.append(pointer[path[-1]])
        path = np.array(path[::-1])
        counts = np.array([[((path[:-1] == i) & (path[1:] == j)).sum() for j in range(2)] for i in range(2)])
        initial = np.eye(2)[path[0]]
        transition = counts / counts.sum(1, keepdims=True)
        rate = np.array([y[path == k].mean() for k in range(2)])
    return loglik


def hard_linkage(problem, n_steps):
    """The first cell is its larger class, of probability 1/2 whatever pi: pi is 34 of the other 72."""
    del problem, n_steps
    pi = 34 / 72
    return COUNTS @ np.log([0.5, (1 - pi) / 4, (1 - pi) / 4, pi / 4])


CLASSIFICATION = {"mixture": hard_mixture, "chain": hard_chain, "log_joint": hard_linkage}


@pytest.mark.published
def test_restarts_run_every_algorithm_as_they_would_alone():
    """Five starts under one vmap equal five fits."""
    starts = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    few = {"max_steps": 6, "stop": jaxem.Stop(None)}
    for algorithm in (jaxem.GEM(optax.adam(0.05)), jaxem.Squarem(), jaxem.HardEM(jaxem.newton())):
        each = jaxem.fit(
            **linkage(), algorithm=algorithm, n_restarts=5, init=jaxem.init.Each({"pi": jnp.asarray(starts)}), **few
        ).restarts.loglik
        alone = [jaxem.fit(**linkage(), algorithm=algorithm, init={"pi": s}, **few).loglik for s in starts]
        np.testing.assert_allclose(each, alone, rtol=1e-12)
