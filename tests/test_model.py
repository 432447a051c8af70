"""The protocol: hooks by their names of old are refused, what follows from others follows."""

import re

import jax.numpy as jnp
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


def test_data_by_such_names_are_the_users_own():
    @jaxem.struct
    class Mine(jaxem.Model):
        at: float = 1.0
        forms = ("a", "b")
        changed = None

    assert Mine().at == 1.0 and Mine.forms == ("a", "b")


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
