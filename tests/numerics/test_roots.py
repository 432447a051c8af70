"""Roots of functions and their derivatives; steps that are judged once."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.numerics.roots import backtracked, root_of_decreasing


def test_root_of_decreasing_and_its_derivative(x64):
    def f(x):
        return jnp.log(x) - jax.scipy.special.digamma(x)

    def root(level):
        return root_of_decreasing(lambda x: f(x) - level, 1e-4 * jnp.ones_like(level), 1e6 * jnp.ones_like(level))

    wanted = jnp.asarray([1e-3, 0.5, 3.0, 1e3])
    np.testing.assert_allclose(jax.jit(root)(f(wanted)), wanted, rtol=1e-9)
    slopes = jax.vmap(jax.grad(f))(wanted)
    np.testing.assert_allclose(jax.vmap(jax.grad(root))(f(wanted)), 1 / slopes, rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(root)(f(wanted)).diagonal(), 1 / slopes, rtol=1e-6)
    np.testing.assert_allclose(root(jnp.asarray([1e9, -1.0])), [1e-4, 1e6], rtol=1e-12)
    np.testing.assert_array_equal(jax.vmap(jax.grad(root))(jnp.asarray([1e9, -1.0])), 0)


def test_a_step_is_judged_once(x64):
    """A verdict that is asked for twice may come out differently by rounding, and the loop would never end."""
    asked = []

    def too_far(size):
        def judge(size):
            asked.append(size)
            return size > 0.3

        return jax.pure_callback(judge, jax.ShapeDtypeStruct((), bool), size, vmap_method="sequential")

    sizes, still = jax.vmap(lambda size: backtracked(too_far, size, 0.5, 1e-3))(jnp.array([1.0, 0.25, 2.0]))
    np.testing.assert_array_equal(sizes, [0.25, 0.25, 0.25])
    assert not still.any() and len(asked) == 3 * (1 + 3)  # every restart at the start, and at each of three halvings
    assert backtracked(lambda size: size > 0, jnp.ones(()), 0.5, 0.1)[1]
