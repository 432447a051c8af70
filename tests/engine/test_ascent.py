"""An M-step by any of Optax's optimizers."""

import optax
import pytest
from linkage import PI
from problems import linkage, rises

import jaxem

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    "optimizer",
    [
        jaxem.newton(),
        optax.lbfgs(),
        optax.adam(0.05),
        optax.chain(optax.clip(1.0), optax.sgd(0.5)),
        optax.adam(optax.cosine_decay_schedule(0.1, 100)),
    ],
)
def test_any_optimizer_of_an_m_step(optimizer):
    result = jaxem.fit(**linkage(), algorithm=jaxem.EM(optimizer, 200), stop=jaxem.Stop(None, None, 1e-10))
    assert result.converged and rises(result.history)
    assert abs(float(result.params["pi"]) - PI) < 1e-6
