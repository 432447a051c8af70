"""Newton steps as an M-step."""

import numpy as np
import pytest
from problems import rises

import jaxem

pytestmark = pytest.mark.usefixtures("x64")


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
