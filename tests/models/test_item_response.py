"""Item response: a published figure."""

import itertools
import json

import numpy as np
from support import DATA

import jaxem

CLASSICS = json.loads((DATA / "classics.json").read_text())


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
