"""The protocol: hooks by their names of old are refused, what follows from others follows."""

import functools
import re

import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.model import RENAMED


@pytest.mark.parametrize("base", [jaxem.Model, jaxem.Family, jaxem.Mixture])
@pytest.mark.parametrize("old", RENAMED)
def test_a_hook_by_its_name_of_old_is_told(base, old):
    with pytest.raises(TypeError, match=f"Mine defines `{old}`, which nothing calls; define {re.escape(RENAMED[old])} instead"):
        type("Mine", (base,), {old: lambda self, params: self})


def test_as_a_property_too():
    with pytest.raises(TypeError, match="Mine defines `ascended`, which nothing calls; define `without_closed_form` instead"):

        class Mine(jaxem.Model):
            @property
            def ascended(self):
                return True


class Mixin:
    def degenerate(self, params):
        return True


SILENT = {
    "inherited": ("degenerate", (Mixin, jaxem.Mixture), {}),
    "value": ("ascended", (jaxem.Model,), {"ascended": {"mean": True}}),
    "cached_property": ("blank", (jaxem.Family,), {"blank": functools.cached_property(lambda self: 1)}),
    "classmethod": ("at", (jaxem.Model,), {"at": classmethod(lambda cls, params: cls)}),
    "field": ("forms", (jaxem.Model,), {"__annotations__": {"forms": "int"}}),
    "field with a default": ("moved", (jaxem.Model,), {"moved": 1.0, "__annotations__": {"moved": "float"}}),
}


@pytest.mark.parametrize("name", SILENT)
def test_whatever_bears_such_a_name_is_refused(name):
    old, bases, namespace = SILENT[name]
    with pytest.raises(TypeError, match=f"Mine defines `{old}`, which nothing calls"):
        type("Mine", bases, namespace)


@pytest.mark.parametrize("owner, hook, n", [(jaxem.Model(), "natural", 1), (jaxem.Model(), "log_marginal", 3),
                                            (jaxem.Family(), "scores", 2), (jaxem.Family(), "template", 2),
                                            (jaxem.init.Startable(), "initialize_by", 4),
                                            (jaxem.Init(), "partition", 4)])  # fmt: skip
def test_a_required_hook_is_told(owner, hook, n):
    with pytest.raises(NotImplementedError, match=f"{type(owner).__name__} must define `{hook}`"):
        getattr(owner, hook)(*[None] * n)


def test_a_family_without_a_start_is_told():
    class Mine(jaxem.Family):
        pass

    with pytest.raises(TypeError, match="Mine tells no start: define `start` or `m_step`, or give init=params"):
        Mine().start({}, {})


def test_a_model_that_is_no_pytree_runs_as_it_is():
    class Mine(jaxem.Model):
        def natural(self, params):
            return params

        def log_marginal(self, natural, data, rows):
            return natural["mean"] * data

    np.testing.assert_allclose(Mine().log_prob({"mean": jnp.array(2.0)}, jnp.arange(3.0)), [0, 2, 4])


@jaxem.struct
class Stretched(jaxem.Gaussian):
    def log_abs_det(self, data, affine):
        return 7.0 + super().log_abs_det(data, affine)


@pytest.mark.parametrize("missing", [None, "marginal"])
def test_the_family_says_what_new_coordinates_lose(missing):
    x = np.array([[0.0, 1.0], [2.0, 5.0], [3.0, 3.0]])
    if missing:
        x[1, 0] = np.nan
    own, plain = Stretched("diag", missing=missing), jaxem.Gaussian("diag", missing=missing)
    affine = plain.coordinates(x, np)
    loss = plain.log_abs_det(x, affine)
    assert np.shape(loss) == ((3,) if missing else ())
    for wrapped in (jaxem.Mixture(2, own), jaxem.Single(own)):
        np.testing.assert_allclose(wrapped.log_abs_det(x, affine), loss + 7)
    for wrapped in (jaxem.Mixture(2, plain), jaxem.Single(plain)):
        np.testing.assert_allclose(wrapped.log_abs_det(x, affine), loss)


@pytest.mark.parametrize("found, wanted", [([False, False], False), ([False, True], True)])
def test_degenerate_follows_from_at_floor(found, wanted):
    class Mine(jaxem.Model):
        def at_floor(self, params):
            return {**super().at_floor(params), "variance": jnp.array(found)}

    params = {"mean": jnp.zeros(2), "variance": jnp.ones(2)}
    assert bool(Mine().degenerate(params)) is wanted
    assert not jaxem.Model().degenerate(params) and not jaxem.Model().degenerate({})


def test_exact_is_the_last_variant_about_the_parameters():
    class Mine(jaxem.Model):
        def __init__(self, *path):
            self.path = path

        def centered(self, params):
            return Mine(*self.path, "about", params)

        def variants(self, params):
            return 0, (self, Mine(*self.path, "exact"))

    assert Mine().exact(3).path == ("about", 3, "exact")
