"""Grammars against enumerations of parse trees."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem


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
