"""Fitted parameters and tables for other programs, as the contents of npz, JSON and CSV files. No pickle."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxem.numerics.leaves import leaf_names
from jaxem.pytree import PyTree


def npz_of_params(params: PyTree) -> bytes:
    """An npz file with an array for each leaf; leaf components/mean becomes the array "components.mean"."""
    leaves = dict(zip(leaf_names(params), map(np.asarray, jax.tree.leaves(params)), strict=True))
    file = io.BytesIO()
    np.savez(file, **leaves)  # type: ignore[arg-type]
    return file.getvalue()


def json_of_params(params: PyTree, about: dict[str, Any]) -> str:
    """A JSON file of the parameters under "params", after what there is to say `about` them."""
    nested = jax.tree.map(lambda x: np.asarray(x).tolist(), params)
    return json.dumps({**about, "params": nested}, indent=2, allow_nan=False) + "\n"


def csv_of_table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A CSV file; floats keep every digit."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows(itertools.chain([names], rows))
    return file.getvalue()
