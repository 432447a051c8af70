"""Arguments that entry points share: the same names, defaults and kinds wherever they stand."""

import inspect
import itertools

import pytest

import jaxem
from jaxem.fitting.arguments import task_of

ENTRIES = {f.__name__: inspect.signature(f).parameters for f in (jaxem.fit, jaxem.fit_stream, jaxem.plan, task_of)}


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(ENTRIES, 2)))
def test_shared_arguments_have_the_same_defaults(one, other):
    shared = ENTRIES[one].keys() & ENTRIES[other].keys()
    assert shared >= {"model", "init", "n_restarts", "algorithm", "block_size", "rounds"}
    for name in shared:
        left, right = ENTRIES[one][name], ENTRIES[other][name]
        assert (left.default, left.kind) == (right.default, right.kind), name


def test_a_task_takes_what_fit_takes_and_watching_is_left_to_fit():
    assert ENTRIES["fit"].keys() - ENTRIES["task_of"].keys() == {"progress", "checkpoint", "max_seconds", "callback"}
    assert not ENTRIES["task_of"].keys() - ENTRIES["fit"].keys()
    assert not ENTRIES["plan"].keys() - ENTRIES["fit"].keys()
