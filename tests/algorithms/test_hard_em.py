"""Hard EM is for discrete latent values."""

import numpy as np
import pytest

import jaxem

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    "model, data",
    [
        (jaxem.LocalLevel(), np.arange(6.0)),
        (jaxem.Superposition(), {"y": np.ones(3), "row": np.ones((3, 2))}),
    ],
)
def test_hard_em_needs_discrete_latent_values(model, data):
    with pytest.raises(TypeError, match=f"HardEM needs a model with discrete latent values .* got {type(model).__name__}"):
        jaxem.fit(model, data, algorithm=jaxem.HardEM())
