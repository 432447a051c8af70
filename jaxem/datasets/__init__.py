"""Data sets small enough to travel with the package; README.md beside them gives their sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_HERE = Path(__file__).parent


def old_faithful() -> np.ndarray:
    """Old Faithful geyser: 272 eruptions, (272, 2) float64.

    Column 0 is the duration of an eruption, column 1 the waiting time to the next one, both in minutes
    (Azzalini and Bowman 1990).
    """
    return np.loadtxt(_HERE / "old_faithful.csv", delimiter=",", skiprows=1)
