"""Roots and solutions of singular matrices, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem.numerics.linalg import is_positive_definite, least_squares, semi_cholesky


def test_semi_cholesky_and_least_squares_take_singular_matrices(x64):
    a = np.random.default_rng(5).normal(size=(4, 2))
    singular = np.zeros((5, 5))
    singular[:4, :4] = a @ a.T
    root = semi_cholesky(jnp.asarray(singular))
    np.testing.assert_allclose(root @ root.T, singular, atol=1e-12)
    solved = least_squares(jnp.asarray(singular), jnp.asarray(singular[:, 0]))
    np.testing.assert_allclose(singular @ solved, singular[:, 0], atol=1e-8)


def test_least_squares_of_a_balanced_design_have_a_derivative(x64):
    """Equal eigenvalues: each coefficient is a mean of the responses, and so is what a fit returns."""
    inputs = np.array([[1.0], [-1.0], [1.0], [-1.0]])
    slope = jax.jacobian(lambda gram: least_squares(gram, jnp.array([1.0, 2.0])))(4 * jnp.eye(2))
    np.testing.assert_allclose(slope[0, 0, 0], -1 / 16, rtol=1e-9)

    def coefficient(y):
        init = {"coefficients": jnp.array([0.1, 0.2]), "variance": jnp.array(1.0)}
        data = {"lower": y, "upper": y, "inputs": jnp.asarray(inputs)}
        return jaxem.fit(jaxem.CensoredRegression(), data, init=init, max_steps=200).params["coefficients"][0]

    gradient = jax.jit(jax.grad(coefficient))(jnp.array([1.0, 3.0, 2.0, 0.5]))
    np.testing.assert_allclose(gradient, [0.25, -0.25, 0.25, -0.25], atol=1e-6)


def test_is_positive_definite(dtype):
    """By more than rounding, in units of its own."""
    rng = np.random.default_rng(0)
    for d in (1, 3, 10):
        root, unit = rng.normal(size=(4, d, d)), 10.0 ** np.linspace(-6, 6, d)
        whole = root @ root.swapaxes(-1, -2) + 0.1 * np.eye(d)
        flat = root[..., 1:] @ root[..., 1:].swapaxes(-1, -2)  # of rank d - 1
        for matrix, wanted in ((whole, True), (flat, False), (whole * np.nan, False), (whole * np.inf, False), (-whole, False)):
            scaled = jnp.asarray((unit[:, None] * matrix * unit).astype(dtype))
            assert (np.asarray(is_positive_definite(scaled)) == wanted).all(), (d, wanted)
