"""The laws on the other structures: chains, superpositions, Gaussian chains, topics, trees, a user's own function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import BY_OPTAX, MOMENTS, NO_CLAIM, NO_COORDINATES, NO_POSTERIOR, NO_SAMPLE, ONE_VARIANT, assert_laws
from support import DERIVED as OF_ALL

import jaxem

pytestmark = [pytest.mark.laws, pytest.mark.usefixtures("same_numbers")]
RNG = np.random.default_rng(0)
DERIVED = OF_ALL | ONE_VARIANT | NO_COORDINATES


def two_state_poisson_hmm():
    steps = [np.where(np.arange(t) // 5 % 2, RNG.poisson(8, t), RNG.poisson(2, t)) for t in (30, 20, 25, 30) * 4]
    return jaxem.HMM(2, jaxem.Poisson()), jaxem.sequences([x.astype(float) for x in steps]), OF_ALL | NO_COORDINATES


def superposition_of_a_matrix():
    rows = RNG.random((40, 4))
    counts = RNG.poisson(rows @ [5.0, 10.0, 2.0, 8.0]).astype(float)
    return jaxem.Superposition(), {"y": counts, "row": rows}, DERIVED | NO_POSTERIOR | NO_SAMPLE


def project(operands, x):
    return operands @ x


ABOUT_ROWS = ("additivity", "padding", "weight-zero-is-absent", "weight-two-is-twice", "row-order", "block-size")
ONE_DATUM = {name: "the data are one indivisible datum (N = 1)" for name in ABOUT_ROWS}
BOUND = {
    "louis": "the model has local: its curvature is that of a bound",
    "loglik-is-sum-of-log-prob": "the E-step takes local where it stands, log_prob from a cold start",
    "mean-score": "log_marginal is a bound",
    "n-free-params": "log_marginal is a bound",
}


def superposition_of_a_function():
    matrix = RNG.random((30, 4))
    counts = RNG.poisson(matrix @ [5.0, 10.0, 2.0, 8.0]).astype(float)[None]
    model = jaxem.Superposition(project, shape=(4,), operands=jnp.asarray(matrix))
    skipped = DERIVED | NO_POSTERIOR | ONE_DATUM
    del skipped["weight-zero-is-absent"]  # of masked bins
    return model, {"y": counts, "background": RNG.random((1, 30)), "mask": RNG.random((1, 30)) < 0.8}, skipped


def project_views(operands, x, row):
    return jnp.einsum("nbp,p->nb", row, x) * operands


def superposition_of_views():
    views = RNG.random((12, 5, 4))
    data = {"y": RNG.poisson(views @ [5.0, 10.0, 2.0, 8.0]).astype(float), "row": views, "mask": RNG.random((12, 5)) < 0.8}
    data["attenuation"] = RNG.uniform(0.5, 1, (12, 5))
    skipped = DERIVED | NO_POSTERIOR | NO_SAMPLE | NO_CLAIM
    return jaxem.Superposition(project_views, (4,), jnp.asarray(1.0), prior=jaxem.Smoothness(0.1)), data, skipped


OWN_E_STEP = MOMENTS | {name: OF_ALL[name] for name in ("device-count", "local")}


def local_level():
    levels = np.cumsum(RNG.normal(size=(8, 12)), 1)
    data = jaxem.sequences(list(levels + 2 * RNG.normal(size=levels.shape)))
    return jaxem.LocalLevel(10.0), data, OWN_E_STEP


def driven_states_with_gaps():
    """Correlated noise, inputs, missing entries, sequences of several lengths; what is fixed identifies the model."""
    parts = [{"y": RNG.normal(size=(t, 2)), "inputs": RNG.normal(size=(t, 1))} for t in (6, 7, 5, 6, 7, 5)]
    for part in parts:
        part["y"][RNG.random(part["y"].shape) < 0.15] = np.nan
    model = jaxem.StateSpace(1, fixed={"state_noise": np.eye(1)}, observation_noise="full")
    return model, jaxem.sequences(parts), OWN_E_STEP | NO_SAMPLE  # no inputs but those of data


def diffuse_trends():
    trends = np.cumsum(np.cumsum(0.3 * RNG.normal(size=(6, 8)), 1), 1)
    data = jaxem.sequences(list(trends + RNG.normal(size=trends.shape)))
    return jaxem.LocalLinearTrend(), data, OWN_E_STEP | NO_SAMPLE


def lda():
    shares, topics = RNG.dirichlet([0.3] * 3, 30), RNG.dirichlet([0.2] * 12, 3)
    counts = np.stack([RNG.multinomial(60, share @ topics) for share in shares]).astype(float)
    skipped = DERIVED | BOUND
    del skipped["local"]
    return jaxem.LDA(3), counts, skipped


def plsa():
    _, counts, skipped = lda()
    return jaxem.PLSA(3, prior=jaxem.Dirichlet(1.5)), jaxem.documents(counts), skipped


def sparse_lda():
    _, counts, skipped = lda()
    return jaxem.LDA(3, learn_alpha=True), jaxem.documents(counts), skipped | NO_CLAIM


def ancestry():
    """What is learned of each SNP is of no other: the log-likelihood at the best frequencies is no log-density."""
    shares, frequencies = RNG.dirichlet([0.5] * 3, 12), RNG.uniform(0.1, 0.9, (60, 3))
    genotypes = RNG.binomial(2, frequencies @ shares.T)
    skipped = DERIVED | BOUND
    del skipped["local"]
    return jaxem.Ancestry(3), np.where(RNG.random(genotypes.shape) < 0.1, -1, genotypes), skipped


def four_taxa():
    model = jaxem.Substitution((5, 4, 4, 5, 5, -1))
    params = {"lengths": jnp.asarray([0.1, 0.2, 0.15, 0.3, 0.1])}
    return model, np.asarray(model.sample(jax.random.key(0), params, 150)), DERIVED


def three_taxa_by_unrest():
    """Every kind of parameter; gaps and ambiguity codes."""
    model = jaxem.Substitution((4, 3, 3, 4, -1), jaxem.UNREST(estimated=True), jaxem.FreeRates(2))
    params = {**model.template(None), "frequencies": jnp.asarray([0.4, 0.3, 0.2, 0.1]), "class_shares": jnp.asarray([0.2, 0.8])}
    data = np.array(model.sample(jax.random.key(0), params, 150))
    data[::7, 0], data[::5, 1] = -1, 4
    return model, data, DERIVED | NO_CLAIM


def three_taxa_with_gamma_rates():
    model = jaxem.Substitution((3, 3, 3, -1), jaxem.GTR(), jaxem.GammaRates(3))
    params = {**model.template(None), "shape": jnp.asarray(0.7)}
    return model, np.array(model.sample(jax.random.key(0), params, 150)), DERIVED | NO_CLAIM


def two_means(params, x):
    mean = params["mean"]
    return jnp.log(jnp.asarray([0.4, 0.6], mean.dtype)) - (x - mean) ** 2 / 2


def users_function():
    x = np.concatenate([RNG.normal(-2, 1, 60), RNG.normal(2, 1, 60)])
    skipped = DERIVED | NO_SAMPLE | BY_OPTAX
    return jaxem.log_joint(two_means, init={"mean": jnp.asarray([-1.0, 1.0])}), x, skipped


CASES = [
    two_state_poisson_hmm, superposition_of_a_matrix, superposition_of_a_function, superposition_of_views, local_level,
    driven_states_with_gaps, diffuse_trends, lda, plsa, sparse_lda, ancestry, four_taxa, three_taxa_by_unrest,
    three_taxa_with_gamma_rates, users_function,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_laws(case):
    with jax.enable_x64(True):
        model, data, skipped = case()
        assert_laws(model, data, skipped)
