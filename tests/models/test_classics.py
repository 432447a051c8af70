"""EM's classics, each against a published figure, another program, or plain NumPy."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from support import DATA, read

import jaxem

TIGHT = jaxem.Stop(loglik_rtol=1e-15, param_rtol=1e-11)
CLASSICS = json.loads((DATA / "classics.json").read_text())


def test_motorettes(x64):
    """Lifetimes of which many had not ended (Schmee and Hahn 1979)."""
    case = CLASSICS["motorettes"]
    hours, censored = np.log10(np.array(case["hours"], float)), np.array(case["censored"], bool)
    inputs = 1000 / (np.array(case["temperature_C"]) + 273.2)
    data = {"lower": hours, "upper": np.where(censored, np.inf, hours), "inputs": inputs[:, None]}
    result = jaxem.fit(jaxem.CensoredRegression(), data, stop=TIGHT)
    np.testing.assert_allclose(result.params["coefficients"], [4.31124714, case["b0"]], atol=2e-7)
    np.testing.assert_allclose(jnp.sqrt(result.params["variance"]), 0.25918271, atol=2e-8)
    np.testing.assert_allclose(result.loglik, case["loglik"], atol=1e-7)


def test_what_was_censored(x64):
    """Moments of what is known only in part, against truncated normal densities; far tails stay finite."""
    model, params = jaxem.CensoredRegression(), {"coefficients": jnp.array([0.5, 1.0]), "variance": jnp.array(4.0)}
    data = {"lower": [1.5, 2.0, -np.inf, 0.0, 30.0], "upper": [1.5, np.inf, 0.5, 1.0, 31.0], "inputs": np.arange(5.0)[:, None]}
    middle = 1 + 0.5 * np.arange(5)
    known = stats.truncnorm((data["lower"] - middle) / 2, (data["upper"] - middle) / 2, middle, 2)
    found = model.posterior(params, data)
    mean, variance = found.mean, found.variance
    np.testing.assert_allclose(model.predict(params, data), middle)
    np.testing.assert_allclose(mean[1:], known.mean()[1:], rtol=1e-8)
    np.testing.assert_allclose(variance[1:], known.var()[1:], rtol=1e-4)
    assert mean[0] == 1.5 and variance[0] == 0


@pytest.mark.parametrize("binned", [False, True])
def test_truncated_and_binned(x64, binned):
    """A sample cut off on both sides, whole or as a histogram, against direct maximisation."""
    rng = np.random.default_rng(0)
    y = rng.normal(1, 2, 4000)
    y = y[(y > 0) & (y <= 4)]
    edges = np.arange(0, 4.01, 0.5)
    counts = np.histogram(y, edges)[0].astype(float)
    low, high, weight = (edges[:-1], edges[1:], counts) if binned else (y, y, np.ones(len(y)))

    def loss(free):
        normal = stats.norm(free[0], np.exp(free[1]))
        inside = np.log(np.diff(normal.cdf(edges))) if binned else normal.logpdf(y)
        return -weight @ (inside - np.log(normal.cdf(4) - normal.cdf(0)))

    best = optimize.minimize(loss, [1.0, 0.5], tol=1e-9)
    data = {"lower": low, "upper": high, "above": np.zeros(len(low)), "below": np.full(len(low), 4.0)}
    result = jaxem.fit(jaxem.CensoredRegression(), data, weight=weight, algorithm=jaxem.Squarem(), stop=TIGHT, max_steps=2000)
    np.testing.assert_allclose(result.loglik, -best.fun, rtol=1e-9)
    np.testing.assert_allclose([result.params["coefficients"][0], np.sqrt(result.params["variance"])],
                               [best.x[0], np.exp(best.x[1])], atol=1e-3)  # fmt: skip


def test_rail(x64):
    """Travel times in six rails: a random intercept (Pinheiro and Bates 2000)."""
    case = CLASSICS["rail"]
    result = jaxem.fit(jaxem.RandomIntercept(), np.array(case["rails"], float), algorithm=jaxem.Squarem(), stop=TIGHT)
    np.testing.assert_allclose(result.loglik, -64.28001847, atol=1e-8)
    np.testing.assert_allclose(result.params["coefficients"], [case["mean"]], rtol=1e-8)
    np.testing.assert_allclose(result.params["level_variance"], case["var_rail"], rtol=1e-6)
    np.testing.assert_allclose(result.params["noise_variance"], case["var_residual"], rtol=1e-6)


def test_random_intercept_of_ragged_groups(x64):
    """Inputs and groups of different sizes: the multivariate normal density that the model implies."""
    rng = np.random.default_rng(0)
    y, inputs = rng.normal(size=(5, 4)), rng.normal(size=(5, 4, 2))
    y[0, 2:], y[3, 0] = np.nan, np.nan
    model = jaxem.RandomIntercept()
    params = {"coefficients": jnp.array([0.5, -1.0, 0.2]), "level_variance": jnp.array(0.7), "noise_variance": jnp.array(0.4)}
    got = model.log_prob(params, model.validate({"y": y, "inputs": inputs}))
    for value, row, z in zip(got, y, inputs, strict=True):
        seen = ~np.isnan(row)
        mean = z[seen] @ [0.5, -1.0] + 0.2
        spread = 0.7 * np.ones((seen.sum(), seen.sum())) + 0.4 * np.eye(seen.sum())
        np.testing.assert_allclose(value, stats.multivariate_normal(mean, spread).logpdf(row[seen]), rtol=1e-10)


def test_lsat(x64):
    """Five items of the Law School Admission Test (Bock and Lieberman 1970)."""
    case = CLASSICS["lsat6"]
    answers, counts = np.array(list(itertools.product([0.0, 1.0], repeat=5))), np.array(case["counts"], float)
    stop = jaxem.Stop(loglik_rtol=1e-12)
    result = jaxem.fit(jaxem.ItemResponse(n_nodes=61), answers[counts > 0], weight=counts[counts > 0], stop=stop)
    np.testing.assert_allclose(result.loglik, -2466.65338, atol=1e-5)
    np.testing.assert_allclose(result.params["slope"], case["slopes"], atol=2e-4)
    np.testing.assert_allclose(result.params["intercept"], case["intercepts"], atol=2e-4)
    abilities = jaxem.ItemResponse().posterior(result.params, answers.astype(int))
    again = jaxem.ItemResponse().posterior(result.params, answers)
    np.testing.assert_allclose([abilities.mean, abilities.variance], [again.mean, again.variance], rtol=1e-12)
    assert (np.diff(abilities.mean[np.array([0, 1, 3, 7, 15, 31])]) > 0).all()  # one more right answer at a time


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


def trees(rules, n_symbols, string):
    """Every parse tree of a string by itself: its probability, and the spans (symbol, first, last) of its nodes."""
    binary, emission = rules[:, : n_symbols**2].reshape((n_symbols,) * 3), rules[:, n_symbols**2 :]

    def grow(a, i, j):
        if i == j:
            yield emission[a, string[i]], {(a, i, j)}
        for b, c, middle in itertools.product(range(n_symbols), range(n_symbols), range(i, j)):
            if binary[a, b, c] > 0:
                for (p, left), (q, right) in itertools.product(grow(b, i, middle), grow(c, middle + 1, j)):
                    yield binary[a, b, c] * p * q, left | right | {(a, i, j)}

    return grow(0, 0, len(string) - 1)


def parses(rules, n_symbols, string):
    """Probability of a string, by the recursion that the trees follow."""
    binary, emission = rules[:, : n_symbols**2].reshape((n_symbols,) * 3), rules[:, n_symbols**2 :]

    def inside(a, s):
        if len(s) == 1:
            return emission[a, s[0]]
        pairs = itertools.product(range(n_symbols), range(n_symbols), range(1, len(s)))
        return sum(binary[a, b, c] * inside(b, s[:i]) * inside(c, s[i:]) for b, c, i in pairs)

    return inside(0, string)


@pytest.mark.published
def test_parse_trees(x64):
    """Probabilities of constituents and the most probable tree, against an enumeration; HardEM climbs the latter."""
    strings = [np.array([0, 1, 1, 0]), np.array([1, 0, 0])]
    model, data = jaxem.Grammar(2, 2), jaxem.sequences(strings)
    params = model.initialize(jax.random.key(3), data, jnp.ones(2))
    spans, best = np.asarray(model.spans(params, data)), np.asarray(model.predict(params, data))
    top = 0.0
    for n, string in enumerate(strings):
        every = list(trees(np.asarray(params["rules"]), 2, string))
        expected = np.zeros((4, 4, 2))
        for p, nodes in every:
            for a, i, j in nodes:
                expected[i, j, a] += p / sum(p for p, _ in every)
        np.testing.assert_allclose(spans[n], expected, atol=1e-12)
        nodes = {(best[n][i, j], i, j) for i, j in np.argwhere(best[n] >= 0)}
        highest = max(p for p, _ in every)
        np.testing.assert_allclose([p for p, tree in every if tree == nodes], highest, rtol=1e-12)
        top += np.log(highest)
    hard = jaxem.fit(model, data, init=params, algorithm=jaxem.HardEM(), stop=jaxem.Stop(None), max_steps=3)
    np.testing.assert_allclose(hard.history[0], top, rtol=1e-12)
    assert (np.diff(hard.history) >= 0).all()


@pytest.mark.published
def test_grammar(x64):
    """Inside equals the enumeration of parse trees, and one M-step the expected uses of the rules by differences."""
    rng = np.random.default_rng(1)
    strings = [rng.integers(2, size=n) for n in (1, 2, 3, 4, 5)]
    model, data = jaxem.Grammar(3, 2), jaxem.sequences(strings)
    data = model.validate(data)
    params = model.initialize(jax.random.key(0), data, jnp.ones(5))
    rules = np.asarray(params["rules"])
    np.testing.assert_allclose(np.exp(model.log_prob(params, data)), [parses(rules, 3, list(s)) for s in strings], rtol=1e-12)

    counts = np.zeros_like(rules)
    total = lambda r: sum(np.log(parses(r, 3, list(s))) for s in strings)  # noqa: E731
    for place in np.ndindex(*rules.shape):
        step = np.zeros_like(rules)
        step[place] = 1e-6 * rules[place]
        counts[place] = (total(rules + step) - total(rules - step)) / 2e-6
    stepped = jaxem.fit(model, data, init=params, max_steps=1)
    np.testing.assert_allclose(stepped.params["rules"], counts / counts.sum(1, keepdims=True), rtol=1e-6)


def test_grammar_keeps_structural_zeros(x64):
    """Nested brackets: rules that are not allowed stay at zero, and strings outside the language are impossible."""
    # 0 = S, 1 = (, 2 = ), 3 = S ): S -> ( ) | ( 3 | S S
    allowed = np.zeros((4, 18), bool)
    allowed[0, [0, 1 * 4 + 2, 1 * 4 + 3]] = allowed[1, 16] = allowed[2, 17] = allowed[3, 0 * 4 + 2] = True
    model = jaxem.Grammar(4, 2, allowed=allowed)
    good = jaxem.sequences([np.array(s) for s in ([0, 1], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0, 1, 1])])
    result = jaxem.fit(model, good, key=jax.random.key(0))
    assert (np.asarray(result.params["rules"])[~allowed] == 0).all()
    assert model.log_prob(result.params, model.validate(jaxem.sequences([np.array([1, 0])])))[0] == -np.inf


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
