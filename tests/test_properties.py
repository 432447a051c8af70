"""Every family and model in every situation: finite usable parameters and an honest status, or an error that names its argument.

By hand: pytest -n 0 -s -m slow tests/test_properties.py
"""

import re
import warnings
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxem
from jaxem import Status
from jaxem import constraints as sets

pytestmark = pytest.mark.slow
KEY = jax.random.key(0)
N = 24
RNG = np.random.default_rng(0)
HALF = np.arange(N) % 2
REAL = RNG.normal(size=(N, 3)) + 3 * HALF[:, None]
COUNTS = RNG.poisson(3 + 5 * HALF[:, None], (N, 3))
CODES = (RNG.random((N, 3)) < 0.3 + 0.4 * HALF[:, None]) + RNG.integers(0, 2, (N, 3))
BITS = np.minimum(CODES, 1)
LINE = {"y": REAL[:, 0], "inputs": REAL[:, 1:]}
CELLS = np.exp(-np.abs(np.subtract.outer(np.arange(6), np.arange(4))))


def mix(family):
    return jaxem.Mixture(2, family)


def log_joint(params, x):
    return -jnp.square(x[0] - params["mean"]) / 2


#: A model, its data, and what they are: scales only change what can be scaled.
MODELS = {
    **{f"Gaussian {kind}": (jaxem.GaussianMixture(2, kind), REAL, "real") for kind in ("full", "tied", "diag", "spherical")},
    "Gaussian marginal": (jaxem.GaussianMixture(2, "diag", missing="marginal"), REAL, "real"),
    "StudentT": (mix(jaxem.StudentT("diag")), REAL, "real"),
    "Poisson": (mix(jaxem.Poisson()), COUNTS, "count"),
    "NegativeBinomial": (mix(jaxem.NegativeBinomial()), COUNTS, "count"),
    "Gamma": (mix(jaxem.Gamma()), np.exp(REAL), "positive"),
    "VonMises": (mix(jaxem.VonMises()), REAL, "real"),
    "Bernoulli": (mix(jaxem.Bernoulli()), BITS, "code"),
    "Categorical": (mix(jaxem.Categorical(3)), CODES, "code"),
    "Multinomial": (mix(jaxem.Multinomial()), COUNTS, "count"),
    "Product": (mix(jaxem.Product((jaxem.Gaussian("diag"), jaxem.Gaussian("full")), ((0,), (1, 2)))), REAL, "real"),
    "FamilyMixture": (mix(jaxem.FamilyMixture(2, jaxem.Gaussian("diag"))), REAL, "real"),
    "LinearRegression": (mix(jaxem.LinearRegression()), LINE, "real"),
    "MultivariateNormal": (jaxem.MultivariateNormal(), REAL, "real"),
    "MultivariateT": (jaxem.MultivariateT(), REAL, "real"),
    "HMM Gaussian": (jaxem.HMM(2, jaxem.Gaussian("diag")), REAL, "real"),
    "HMM Poisson": (jaxem.HMM(2, jaxem.Poisson()), COUNTS, "count"),
    "HMM AutoRegression": (jaxem.HMM(2, jaxem.AutoRegression()), REAL[:, 0], "real"),
    "MarkovAutoregression": (jaxem.MarkovAutoregression(2, 1), REAL[:, 0], "real"),
    "FactorAnalysis": (jaxem.FactorAnalysis(1), REAL, "real"),
    "PPCA": (jaxem.PPCA(1), REAL, "real"),
    "LocalLevel": (jaxem.LocalLevel(), REAL[:, 0], "real"),
    "StateSpace": (jaxem.StateSpace(1), REAL, "real"),
    "RandomIntercept": (jaxem.RandomIntercept(), REAL, "real"),
    "CensoredRegression": (
        jaxem.CensoredRegression(), {"lower": REAL[:, 0], "upper": REAL[:, 0] + HALF, "inputs": REAL[:, 1:]}, "real",
    ),
    "ItemResponse": (jaxem.ItemResponse(n_nodes=11), BITS, "code"),
    "LDA": (jaxem.LDA(2), COUNTS, "count"),
    "PLSA": (jaxem.PLSA(2), COUNTS, "count"),
    "Ancestry": (jaxem.Ancestry(2), CODES, "code"),
    "Proportions": (jaxem.Proportions(), REAL, "real"),
    "WrightFisher": (jaxem.WrightFisher(100.0, n_grid=9), {"count": CODES, "total": CODES + 2}, "code"),
    "Superposition": (jaxem.Superposition(), {"y": RNG.poisson(5, N), "row": np.resize(CELLS, (N, 4))}, "count"),
    "log_joint": (jaxem.log_joint(log_joint, init={"mean": jnp.arange(2.0)}), REAL, "real"),
}  # fmt: skip


def each(change, kinds=("real", "positive", "count", "code")):
    """A change of every leaf that leads with N."""
    return kinds, lambda data: jax.tree.map(change, data)


def entry(value):
    def change(x):
        x = x.astype(float)
        x[(3, *(0,) * (x.ndim - 1))] = value
        return x

    return each(change)


def constant(x):
    x = x.copy()
    x[..., 0] = x.flat[0]
    return x if x.ndim > 1 else np.full_like(x, x[0])


def outlier(x):
    x = x.astype(float)
    x[3] = x[3] * 1e6
    return x


SCALED = ("real", "positive")
SITUATIONS = {
    "plain": each(lambda x: x),
    "constant column": each(constant),
    "all rows equal": each(lambda x: np.repeat(x[:1], N, 0)),
    "two kinds of rows": each(lambda x: x[HALF]),
    "duplicated rows": each(lambda x: np.concatenate([x[: N // 2]] * 2)),
    "duplicated columns": each(lambda x: x if x.ndim < 2 else x[:, [0, 0, *range(2, x.shape[1])]]),
    "one row": each(lambda x: x[:1]),
    "three rows": each(lambda x: x[:3]),
    "no rows": each(lambda x: x[:0]),
    "times 1e6": each(lambda x: x * 1e6, SCALED),
    "times 1e-6": each(lambda x: x * 1e-6, SCALED),
    "plus 1e5": each(lambda x: x + 1e5, SCALED),
    "an outlier": each(outlier, SCALED),
    "times 1e5": each(lambda x: x * 100_000, ("count",)),
    "all zero": each(np.zeros_like),
    "NaN": entry(np.nan),
    "inf": entry(np.inf),
    "minus one": entry(-1.0),
    "a half": entry(0.5),
    "an axis more": each(lambda x: np.repeat(x[:, None, None], 2, 1)),
    "text": each(lambda x: x.astype(str)),
    "masked": each(lambda x: np.ma.array(x, mask=np.arange(x.size).reshape(x.shape) == 4)),
    "big-endian": each(lambda x: x.astype(x.dtype.newbyteorder(">"))),
    "frame": each(lambda x: pd.DataFrame(x).convert_dtypes() if x.ndim == 2 else pd.Series(x)),
    "list": each(lambda x: x.tolist()),
    "half precision": each(lambda x: x.astype(np.float16)),
}
WEIGHTS = {
    "weights": HALF + 1.0,
    "half absent": 1.0 * HALF,
    "one row counts": 1.0 * (np.arange(N) == 2),
    "no weight": np.zeros(N),
}
NAMED = re.compile(
    r"\b(data|weight|columns?|n_\w+|series|steps?|sequences?|y|inputs|every restart|length|log-weight|answers)\b"
)
TOTAL = Counter()


@pytest.fixture(scope="module", autouse=True)
def totals():
    yield
    print("\n" + ", ".join(f"{n} {name}" for name, n in sorted(TOTAL.items())))


def told(model, data, **options):
    """What became of a fit, in a word; AssertionError where that is neither usable nor told."""
    try:
        result = jaxem.fit(model, data, key=KEY, max_steps=4, n_restarts=2, **options)
    except (ValueError, TypeError, jaxem.FitError) as error:
        assert NAMED.search(str(error).splitlines()[0]), f"names no argument: {type(error).__name__}: {error}"
        assert not isinstance(error, jax.errors.JAXTypeError), error
        return type(error).__name__
    status = Status(int(result.status))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.params)), f"{status.name}: parameters are not finite"
    assert np.isfinite(result.loglik), f"{status.name}: log-likelihood {result.loglik}"
    at_zero = jax.tree.map(
        lambda c: sets.NonNegative() if isinstance(c, sets.Positive) else c,
        sets.broadcast(model.constraints, result.params), is_leaf=lambda c: isinstance(c, sets.Real),
    )  # fmt: skip
    sets.check(at_zero, jax.tree.map(np.asarray, result.params), "result")
    checked = model.validate(data)
    if model.local is None:  # of a bound, log_prob has its own optimum
        each_row = np.asarray(model.log_prob(result.params, jax.tree.map(jnp.asarray, checked)), float)
        weight = options.get("weight", 1.0)
        again, slack = (np.where(weight == 0, 0, each_row) * weight).sum(), np.finfo(result.loglik.dtype).eps ** 0.4
        size = 1 + np.abs(each_row).sum()
        assert abs(again - result.loglik) <= slack * size, f"{status.name}: {result.loglik} is {again} at its parameters"
    if model.posterior is not None:
        found = jax.tree.leaves(model.posterior(result.params, jax.tree.map(jnp.asarray, checked)))
        assert all(np.isfinite(x).all() for x in found), f"{status.name}: a posterior is not finite"
    return status.name


@pytest.mark.parametrize("name", MODELS)
def test_every_situation(name, dtype):
    model, data, kind = MODELS[name]
    data = jax.tree.map(lambda x: x.astype(dtype) if x.dtype.kind == "f" else x, data)
    counts, failures = Counter(), []

    def tried(situation, *args, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                counts[told(model, *args, **options)] += 1
            except Exception as error:
                failures.append(f"{situation}: {type(error).__name__}: {str(error)[:200]}")

    for situation, (kinds, change) in SITUATIONS.items():
        if kind in kinds and (name, situation) != ("log_joint", "an axis more"):  # of which its function makes what it can
            tried(situation, change(data))
    if not name.startswith(("HMM", "Markov", "LocalLevel", "StateSpace")):  # one datum each
        for situation, weight in WEIGHTS.items():
            tried(situation, data, weight=weight)
    TOTAL.update(counts)
    TOTAL["failures"] += len(failures)
    print(f"\n{name} {dtype}: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    assert not failures, "\n" + "\n".join(failures)
