"""Mixtures of EM's classics, each against a published figure or EM written out in NumPy, and bad input to the classics."""

import json

import jax
import numpy as np
import pytest
from support import DATA, read

import jaxem

TIGHT = jaxem.Stop(loglik_rtol=1e-15, param_rtol=1e-11)
CLASSICS = json.loads((DATA / "classics.json").read_text())


@pytest.mark.parametrize("k, loglik", [(2, -317.2568373), (3, -293.70497878), (4, -289.2858488)])
@pytest.mark.published
def test_latent_classes(x64, k, loglik):
    """Seven pathologists on 118 slides (Agresti 2013, table 14.1); with four classes the best of many starts."""
    options = dict(init=jaxem.init.RandomResponsibilities(), n_restarts=64, stop=jaxem.Stop(loglik_rtol=1e-11))
    result = jaxem.fit(jaxem.Mixture(k, jaxem.Bernoulli()), read("carcinoma.csv"), key=jax.random.key(0), **options)
    np.testing.assert_allclose(result.loglik, loglik, atol=2e-5)


def test_zero_inflated(x64):
    """Risky behaviour in a month: nobody's, and two kinds of people's (Givens and Hoeting 2013, example 4.2)."""
    case = CLASSICS["hiv_risk"]
    model = jaxem.Mixture(3, jaxem.Poisson(zero_inflated=True))
    x, counts = np.arange(17.0), np.array(case["counts"], float)
    result = jaxem.fit(model, x, weight=counts, key=jax.random.key(0), n_restarts=8, stop=TIGHT)
    rates = np.asarray(result.params["components"]["rate"])
    order = np.argsort(rates)
    np.testing.assert_allclose(result.loglik, case["loglik"], atol=1e-7)
    assert rates[0] == 0
    np.testing.assert_allclose(rates[order[1:]], [case["mu"], case["lambda"]], rtol=1e-5)
    np.testing.assert_allclose(result.params["weights"][order[:2]], [case["alpha"], case["beta"]], rtol=1e-5)
    assert model.n_free_params(x) == 4


def annotators_written_out(said, share, n_steps):
    """EM of Dawid and Skene (1979) for counts of answers (N, raters, V): shares, confusion (K, raters, V), posterior."""
    for _ in range(n_steps):
        weights = share.mean(0)
        counts = np.einsum("nk,njv->kjv", share, said)
        probs = counts / counts.sum(-1, keepdims=True)
        joint = np.log(weights) + np.einsum("njv,kjv->nk", said, np.log(np.maximum(probs, 1e-300)))
        share = np.exp(joint - joint.max(1, keepdims=True))
        share = share / share.sum(1, keepdims=True)
    return weights, probs, share


def test_anaesthetists(x64):
    """Five raters of 45 patients, one of them three times (Dawid and Skene 1979, table 1), from the shares of the votes."""
    said = np.eye(4)[read("anaesthetists.csv").astype(int) - 1]
    votes = said.mean(1)
    pooled = np.concatenate([said[:, :3].sum(1, keepdims=True), said[:, 3:]], 1)
    columns = tuple(tuple(range(4 * j, 4 * j + 4)) for j in range(5))
    model = jaxem.Mixture(4, jaxem.Product((jaxem.Multinomial(),) * 5, columns))
    options = {"max_steps": 20, "stop": jaxem.Stop(loglik_rtol=None)}
    result = jaxem.fit(model, pooled.reshape(45, -1), init=jaxem.init.Labels(votes), **options)
    weights, probs, _ = annotators_written_out(pooled, votes, 21)
    np.testing.assert_allclose(result.params["weights"], weights, atol=1e-10)
    for j, part in enumerate(result.params["components"]):
        np.testing.assert_allclose(part["probs"], probs[:, j], atol=1e-10)


def test_annotators(x64):
    """Labels by six workers who skip items (Dawid and Skene 1979), against EM written out; better than votes."""
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=300)
    confusion = 0.4 * rng.dirichlet(np.ones(3), (6, 3)) + 0.6 * np.eye(3)
    x = np.array([[rng.choice(3, p=confusion[j, z]) for j in range(6)] for z in truth]).astype(float)
    x[rng.random(x.shape) < 0.3] = np.nan
    votes = np.stack([(x == k).sum(1) for k in range(3)], 1) + 0.01
    votes = votes / votes.sum(1, keepdims=True)
    model = jaxem.Mixture(3, jaxem.Categorical(3, missing="marginal"))
    result = jaxem.fit(model, x, init=jaxem.init.Labels(votes), max_steps=30, stop=jaxem.Stop(loglik_rtol=None))

    said = np.stack([x == v for v in range(3)], 2).astype(float)
    _, probs, share = annotators_written_out(said, votes, 31)
    np.testing.assert_allclose(result.params["components"]["probs"], probs, atol=1e-8)
    assert (share.argmax(1) == truth).mean() > (votes.argmax(1) == truth).mean() + 0.05


def test_record_linkage(x64):
    """Pairs of records that agree or not on fields, some unread (Fellegi and Sunter 1969): matches are found."""
    rng = np.random.default_rng(0)
    match = rng.random(3000) < 0.05
    agree = np.where(match[:, None], [0.95, 0.9, 0.9, 0.8, 0.97], [0.02, 0.1, 0.05, 0.2, 0.5])
    x = (rng.random((3000, 5)) < agree).astype(float)
    x[rng.random(x.shape) < 0.1] = np.nan
    start = np.where(np.nanmean(x, 1)[:, None] > 0.7, [0.1, 0.9], [0.9, 0.1])
    model = jaxem.Mixture(2, jaxem.Categorical(2, missing="marginal"))
    result = jaxem.fit(model, x, init=jaxem.init.Labels(start))
    found = np.asarray(model.predict(result.params, model.validate(x))) == 1
    assert (found & match).sum() / match.sum() > 0.85 and (found & match).sum() / found.sum() > 0.85
    np.testing.assert_allclose(result.params["weights"][1], match.mean(), atol=0.01)


@pytest.mark.parametrize(
    "model, data, message",
    [
        (jaxem.CensoredRegression(), np.zeros(3), "must be a dict of 'lower', 'upper'"),
        (jaxem.CensoredRegression(), {"lower": [1.0, 3.0], "upper": [2.0, 2.0]}, "at least data.'lower'.*row 1"),
        (jaxem.CensoredRegression(), {"lower": [0.0], "upper": [1.0], "inputs": [[1.0], [2.0]]}, r"must have shape \(1, P\)"),
        (jaxem.CensoredRegression(), {"lower": [0.0], "upper": [1.0], "above": [0.5], "below": [2.0]}, "at least data.'above'"),
        (jaxem.RandomIntercept(), np.full((2, 3), np.nan), "see row 0"),
        (jaxem.RandomIntercept(), np.zeros(3), r"y \(N, T\)"),
        (jaxem.ItemResponse(), np.full((3, 2), 2.0), "0, 1, or NaN where missing; got 2.0"),
        (jaxem.ItemResponse(), np.array([[0, np.nan], [1, np.nan]]), "column 1 has none"),
        (jaxem.Grammar(2, 2), jaxem.sequences([np.array([0, 2])]), "codes 0..1"),
        (jaxem.Grammar(2, 2), [np.array([0, 1]), np.array([0])], r"given as jaxem.sequences\(\[...\]\)"),
        (jaxem.Grammar(2, 2, allowed=np.ones((2, 2))), jaxem.sequences([np.array([0, 1])]), r"must have shape \(2, 6\)"),
        (jaxem.Mixture(2, jaxem.Categorical(2)), np.array([0, -1, 1]), "codes 0..1; got -1 in row 1"),
    ],
)
def test_bad_input(model, data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        jaxem.fit(model, data, key=jax.random.key(0))
