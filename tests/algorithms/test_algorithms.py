"""Every algorithm on a mixture, a chain and a model from a function: it rises, and ends where it must."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linkage import CELLS, COUNTS, PI, by_cells
from scipy.stats import multivariate_normal, poisson
from support import DATA, clusters

import jaxem
from jaxem.numerics.roots import backtracked


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def mixture():
    x = clusters(150, 2, 2, seed=3, spread=1.0)
    covariance = np.stack([np.eye(2)] * 2)
    init = {"weights": np.full(2, 0.5), "components": {"mean": x[[0, 5]], "covariance": covariance}}
    return {"model": jaxem.GaussianMixture(2), "data": x, "init": init}


def chain():
    init = {
        "initial": np.full(2, 0.5),
        "transition": np.array([[0.8, 0.2], [0.2, 0.8]]),
        "emission": {"rate": np.array([15.0, 25.0])},
    }
    counts = np.loadtxt(DATA / "earthquakes.csv", skiprows=1)
    return {"model": jaxem.HMM(2, jaxem.Poisson()), "data": counts, "init": init}


def linkage():
    return {"model": by_cells(), "data": CELLS, "weight": COUNTS}


PROBLEMS = {"mixture": mixture, "chain": chain, "log_joint": linkage}
#: An initial probability goes to zero: its free coordinate to minus infinity, where gradients fade before it arrives.
CLOSE = {"mixture": 1e-6, "chain": 2e-3, "log_joint": 1e-6}
ALGORITHMS = {
    "GEM by Adam": jaxem.GEM(optax.adam(0.03), 10),
    "ECM over every leaf": jaxem.ECM(),
    "hard": jaxem.HardEM(),
    "Squarem over ECM": jaxem.Squarem(algorithm=jaxem.ECM()),
    "Anderson over EM by Newton": jaxem.Anderson(algorithm=jaxem.EM(jaxem.newton())),
}


def rises(history) -> bool:
    history = np.asarray(history)
    return bool((np.diff(history) >= -1e-12 * np.abs(history).max()).all())


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


@pytest.mark.parametrize(
    "model, data",
    [
        (jaxem.LocalLevel(), np.arange(6.0)),
        (jaxem.Superposition(), {"y": np.ones(3), "row": np.ones((3, 2))}),
    ],
)
def test_hard_em_needs_discrete_latent_values(model, data):
    with pytest.raises(TypeError, match=f"HardEM needs a model with discrete latent values .* got {type(model).__name__}"):
        jaxem.fit(model, data, algorithm=jaxem.HardEM())


# --- what each is told ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "optimizer",
    [
        jaxem.newton(),
        optax.lbfgs(),
        optax.adam(0.05),
        optax.chain(optax.clip(1.0), optax.sgd(0.5)),
        optax.adam(optax.cosine_decay_schedule(0.1, 100)),
    ],
)
def test_any_optimizer_of_an_m_step(optimizer):
    result = jaxem.fit(**linkage(), algorithm=jaxem.EM(optimizer, 200), stop=jaxem.Stop(None, None, 1e-10))
    assert result.converged and rises(result.history)
    assert abs(float(result.params["pi"]) - PI) < 1e-6


@pytest.mark.published
def test_newton_reaches_a_top_in_a_few_steps():
    """A gamma mixture's shapes: four Newton steps an M-step lead where a hundred of L-BFGS do."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.gamma(2.0, 1.0, 200), rng.gamma(9.0, 2.0, 100)])
    init = {"weights": np.full(2, 0.5), "components": {"shape": np.array([1.0, 5.0]), "rate": np.array([1.0, 0.5])}}
    given = {"model": jaxem.Mixture(2, jaxem.Gamma()), "data": x, "init": init, "max_steps": 25, "stop": jaxem.Stop(None)}
    few = jaxem.fit(**given, algorithm=jaxem.EM(jaxem.newton(), 4))
    many = jaxem.fit(**given, algorithm=jaxem.EM())
    assert rises(few.history)
    np.testing.assert_allclose(few.history[-8:], many.history[-8:], rtol=1e-9)


def test_ecm_moves_its_groups_alone():
    problem = chain()
    result = jaxem.fit(**problem, algorithm=jaxem.ECM(groups=["transition", ("emission",)]), max_steps=30)
    np.testing.assert_array_equal(result.params["initial"], problem["init"]["initial"])
    assert (np.abs(result.params["emission"]["rate"] - problem["init"]["emission"]["rate"]) > 0.1).all()
    assert rises(result.history)
    with pytest.raises(
        ValueError, match=r"ECM.groups must name leaves of the parameters, which are .*emission.rate.* got 'emision'"
    ):
        jaxem.fit(**problem, algorithm=jaxem.ECM(groups=(("emision",),)))


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


def test_a_step_is_judged_once():
    """A verdict that is asked for twice may come out differently by rounding, and the loop would never end."""
    asked = []

    def too_far(size):
        def judge(size):
            asked.append(size)
            return size > 0.3

        return jax.pure_callback(judge, jax.ShapeDtypeStruct((), bool), size, vmap_method="sequential")

    sizes, still = jax.vmap(lambda size: backtracked(too_far, size, 0.5, 1e-3))(jnp.array([1.0, 0.25, 2.0]))
    np.testing.assert_array_equal(sizes, [0.25, 0.25, 0.25])
    assert not still.any() and len(asked) == 3 * (1 + 3)  # every restart at the start, and at each of three halvings
    assert backtracked(lambda size: size > 0, jnp.ones(()), 0.5, 0.1)[1]
