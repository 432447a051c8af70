"""Configurations that a phenotype leaves possible."""

import jaxem


def test_configurations_are_in_the_dtype_of_jax(dtype):
    """So that a fit in float32 does not warn of data that the user did not write."""
    data, _ = jaxem.genotypes({"A": ["AA", "AO"], "O": ["OO"]})
    assert data["log_weight"].dtype == dtype
