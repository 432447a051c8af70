"""The laws on shares of a population, motifs, censored data, random intercepts, items, grammars, and drift."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import BY_OPTAX, MOMENTS, NO_COORDINATES, NO_POSTERIOR, NO_SAMPLE, ONE_VARIANT, assert_laws
from support import DERIVED as OF_ALL

import jaxem

pytestmark = [pytest.mark.laws, pytest.mark.usefixtures("same_numbers")]
RNG = np.random.default_rng(0)
DERIVED = OF_ALL | ONE_VARIANT | NO_COORDINATES


def proportions_of_a_table():
    x = np.where(RNG.random(150) < 0.3, RNG.normal(2, 1, 150), RNG.normal(0, 1, 150))
    return jaxem.Proportions(), -((x[:, None] - [0.0, 2.0, 3.0]) ** 2) / 2, DERIVED | NO_SAMPLE


def gene_counting_with_groups():
    codes = RNG.integers(1, 3, (60, 2, 2))
    codes[RNG.random(codes.shape) < 0.1] = 0
    data, haplotypes, groups = jaxem.haplotype_pairs(codes)
    return jaxem.Proportions(len(haplotypes), groups=groups), data, DERIVED | NO_SAMPLE


def motif_on_both_strands():
    letters = np.array(list("ACGT"))
    texts = ["".join(letters[RNG.integers(4, size=n)]) for n in RNG.integers(12, 20, 60)]
    return jaxem.Motif(3, both_strands=True), jaxem.dna(texts), DERIVED | NO_POSTERIOR


def censored_and_truncated():
    z = RNG.normal(size=(300, 1))
    y = 1 + z[:, 0] + RNG.normal(size=300)
    kept = (y > -1) & (y < 4)
    y, z = y[kept], z[kept]
    low, high = np.where(y > 2.5, 2.5, y), np.where(y > 2.5, 4.0, y)
    low, high = np.where(y < 0, np.floor(y), low), np.where(y < 0, np.ceil(y), high)
    data = {"lower": low, "upper": high, "inputs": z, "above": np.full(len(y), -1.0), "below": np.full(len(y), 4.0)}
    skipped = DERIVED | MOMENTS
    del skipped["variants-agree"]  # statistics are about the current coefficients
    return jaxem.CensoredRegression(), data, skipped


def random_intercept():
    y = 1 + RNG.normal(size=(60, 1)) + 0.5 * RNG.normal(size=(60, 4))
    y[0, 2:] = np.nan
    return jaxem.RandomIntercept(), {"y": y, "inputs": RNG.normal(size=(60, 4, 1))}, DERIVED | MOMENTS


def item_response():
    logit = RNG.normal(size=(150, 1)) * [1.0, 0.7, 1.5, 1.2] + [0.5, -0.5, 0.0, 1.0]
    answers = (RNG.random(logit.shape) < 1 / (1 + np.exp(-logit))).astype(float)
    answers[RNG.random(answers.shape) < 0.1] = np.nan
    return jaxem.ItemResponse(n_nodes=15), answers, DERIVED | MOMENTS | BY_OPTAX


def grammar():
    strings = [np.array(s) for n in (1, 2, 3, 4) for s in itertools.product((0, 1), repeat=n)]
    return jaxem.Grammar(2, 2), jaxem.sequences(strings), DERIVED | NO_POSTERIOR | NO_SAMPLE


def wright_fisher():
    model = jaxem.WrightFisher(100.0, n_grid=21)
    data = jax.tree.map(np.asarray, model.sample(jax.random.key(0), {"selection": jnp.asarray(0.05)}, 20, n_steps=12, total=10))
    return model, data, DERIVED | BY_OPTAX


CASES = [
    proportions_of_a_table, gene_counting_with_groups, motif_on_both_strands, censored_and_truncated, random_intercept,
    item_response, grammar, wright_fisher,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_laws(case):
    with jax.enable_x64(True):
        model, data, skipped = case()
        assert_laws(model, data, skipped)
