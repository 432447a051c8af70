"""Loadings turned to where they are easiest to read."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxem.data.validation import numeric


def varimax(
    loadings: Any, normalize: bool = True, max_steps: int = 1_000, tolerance: float = 1e-10
) -> tuple[np.ndarray, np.ndarray]:
    """The rotation that makes squared loadings of each factor vary most (Kaiser 1958), factors signed and in order.

    Args:
        loadings: (D, Q).
        normalize: scale rows to unit length first and back after (Kaiser).
        max_steps: iterations at most.
        tolerance: relative change of the criterion at which to stop.

    Returns:
        Rotated loadings (D, Q), the factor that explains most first, each with a positive sum; and the orthogonal
        (Q, Q) rotation with loadings @ rotation = rotated, which turns posterior means of factors too.

    Raises:
        ValueError: for another rank.
    """
    given = numeric(loadings, "loadings").astype(np.float64)
    if given.ndim != 2:
        raise ValueError(f"loadings must have shape (D, Q); got {given.shape}")
    length = np.linalg.norm(given, axis=1, keepdims=True)
    x = given / np.where(length > 0, length, 1) if normalize else given
    rotation, criterion = np.eye(x.shape[1]), -1.0
    for _ in range(max_steps):
        z = x @ rotation
        left, values, right = np.linalg.svd(x.T @ (z**3 - z * np.square(z).mean(0)))
        rotation, before, criterion = left @ right, criterion, float(values.sum())
        if criterion <= before * (1 + tolerance):
            break
    turned = given @ rotation
    rotation = rotation[:, np.argsort(-np.square(turned).sum(0), kind="stable")]
    rotation = rotation * np.where((given @ rotation).sum(0) < 0, -1, 1)
    return given @ rotation, rotation
