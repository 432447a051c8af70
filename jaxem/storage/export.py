"""Fitted parameters for other programs: an npz file and the same in JSON. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxem.numerics.leaves import leaf_names
from jaxem.pytree import PyTree


def write_params(stem: str | Path, params: PyTree, about: dict[str, Any]) -> None:
    """Write parameters as `stem`.npz, an array for each leaf, and as `stem`.json, beside what there is to say about them.

    Args:
        stem: path without its ending.
        params: pytree of arrays; leaf components/mean becomes the array "components.mean".
        about: what JSON can hold; it comes before `params` in the JSON file.
    """
    leaves = dict(zip(leaf_names(params), map(np.asarray, jax.tree.leaves(params)), strict=True))
    stem = Path(stem)
    np.savez(stem.with_name(stem.name + ".npz"), **leaves)  # type: ignore[arg-type]
    nested = jax.tree.map(lambda x: np.asarray(x).tolist(), params)
    text = json.dumps({**about, "params": nested}, indent=2, allow_nan=False)
    stem.with_name(stem.name + ".json").write_text(text + "\n", encoding="utf-8")
