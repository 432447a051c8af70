"""Numeric CSV tables."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def read_table(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Read a numeric table, separated by commas, semicolons or tabs; a first line without numbers is its header.

    Args:
        path: the file, UTF-8.

    Returns:
        The D column names, and the values (N, D) float64.

    Raises:
        ValueError: in one line: the file, and the column and the line of what is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a directory, not a CSV file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a UTF-8 text file") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    first_line = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first_line.count)
    try:
        reader = csv.reader(text.splitlines(), delimiter=delimiter, skipinitialspace=True)
        lines = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file ({error})") from None
    if not lines:
        raise ValueError(f"{path}: the file is empty")
    first = lines[0][1]
    names = [f"column {j + 1}" for j in range(len(first))]
    if not any(_is_number(field) for field in first):
        names = [field.strip() or name for field, name in zip(first, names, strict=True)]
        lines = lines[1:]
    if not lines:
        raise ValueError(f"{path}: no rows below the header")
    return names, np.array([_numbers(path, line, row, names) for line, row in lines])


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field  # float() reads 1_000


def _numbers(path: Path, line: int, row: Sequence[str], names: Sequence[str]) -> list[float]:
    if len(row) != len(names):
        raise ValueError(f"{path}: line {line} has {len(row)} fields where {len(names)} were expected")
    for name, field in zip(names, row, strict=True):
        if not field.strip():
            raise ValueError(f"{path}: column {name!r}, line {line}: the value is missing")
        if not _is_number(field):
            raise ValueError(f"{path}: column {name!r}, line {line}: {field.strip()!r} is not a number")
        if not math.isfinite(float(field)):
            raise ValueError(f"{path}: column {name!r}, line {line}: {field.strip()!r} is not finite")
    return [float(field) for field in row]
