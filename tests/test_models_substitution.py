"""Branch lengths of a tree against PHAST, and pruning against the sum over all ancestral states."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


#: (human, (mouse, rat), cow): leaves 0-3, 4 the ancestor of the rodents, 5 the root.
PARENTS = (5, 4, 4, 5, 5, -1)


def read_patterns():
    rows = [line.split(",") for line in (Path(__file__).parent / "data/hmrc_patterns.csv").read_text().split()[1:]]
    codes = np.array([["ACGT".find(base) for base in row[:4]] for row in rows])
    return codes, np.array([float(row[4]) for row in rows])


def test_jukes_cantor_on_four_mammals():
    codes, counts = read_patterns()
    model = jaxem.Substitution(PARENTS)
    result = jaxem.fit(model, codes, weight=counts, stop=jaxem.Stop(None, None, 1e-9))
    assert result.converged
    assert abs(float(result.loglik) + 200605.7036) < 1e-3
    assert (np.diff(result.history) > -1e-6).all()
    assert model.n_free_params(codes) == 5


def test_jukes_cantor_on_seventeen_vertebrates():
    """IQ-TREE 2.0.7 on the same topology: -23662.3207."""
    rows = [line.split(",") for line in (Path(__file__).parent / "data/vertebrates_patterns.csv").read_text().split()[1:]]
    codes = np.array([["ACGT".find(base) for base in pattern] for pattern, _ in rows])
    inner = (31, 19, 20, 21, 29, 23, 24, 26, 26, 28, 28, 29, 30, 31, -1)
    parents = (31, 17, 17, 30, 19, 20, 21, 18, 18, 24, 23, 22, 22, 25, 25, 27, 27, *inner)
    result = jaxem.fit(jaxem.Substitution(parents), codes, weight=np.array([float(count) for _, count in rows]))
    assert abs(float(result.loglik) + 23662.3207) < 1e-3


def test_pruning_sums_over_ancestors():
    from scipy.linalg import expm

    model = jaxem.Substitution(PARENTS)
    lengths = np.array([0.1, 0.3, 0.05, 0.7, 0.2])
    data = np.array([[0, 1, 2, 3], [2, 2, 2, 2], [0, -1, 3, 3], [4, 4, 4, 4]])
    p = [expm(np.full((4, 4), t / 3) - np.eye(4) * 4 * t / 3) for t in lengths]
    wanted = np.zeros(len(data))
    for n, row in enumerate(data):
        leaves = [[code] if 0 <= code < 4 else range(4) for code in row]
        for h, m, r, c, rodent, root in itertools.product(*leaves, range(4), range(4)):
            wanted[n] += (
                0.25 * p[0][root, h] * p[1][rodent, m] * p[2][rodent, r] * p[3][root, c] * p[4][root, rodent]
            )  # fmt: skip
    np.testing.assert_allclose(model.log_prob({"lengths": jnp.asarray(lengths)}, data), np.log(wanted), atol=1e-12)


def test_zero_branch_stays_zero_and_recovery():
    model = jaxem.Substitution(PARENTS)
    truth = {"lengths": jnp.array([0.1, 0.2, 0.0, 0.3, 0.15])}
    data = model.sample(jax.random.key(0), truth, 4000)
    result = jaxem.fit(model, data, init={"lengths": np.array([0.1, 0.1, 0.0, 0.1, 0.1])})
    assert result.params["lengths"][2] == 0
    np.testing.assert_allclose(result.params["lengths"], truth["lengths"], atol=0.03)


def test_bad_input():
    with pytest.raises(ValueError, match="parents"):
        jaxem.fit(jaxem.Substitution((-1, 0)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="a column for each leaf"):
        jaxem.fit(jaxem.Substitution(PARENTS), np.zeros((3, 2)))
