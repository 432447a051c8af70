"""ECM moves the groups that it is given, one at a time."""

import numpy as np
import pytest
from problems import chain, rises

import jaxem

pytestmark = pytest.mark.usefixtures("x64")


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
