"""Numeric CSV tables."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxem.data.text import read_text, shortened


def read_table(path: str | Path, *, header: bool | None = None, index: bool | None = None) -> tuple[list[str], np.ndarray]:
    """Read a numeric table, separated by commas, semicolons or tabs; a first line without numbers is its header.

    Args:
        path: the file, UTF-8.
        header: whether the first line is one; None: told by itself, and refused where it could be either (2021,2022).
        index: whether the first column is the rows' numbers, and left out; None: told by its name, which is empty, and
            refused where it has another and yet numbers the rows.

    Returns:
        The D column names, and the values (N, D) float64.

    Raises:
        ValueError: in one line: the file, and the column and the line of what is wrong.
    """
    text = read_text(path)
    first_line = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = max(",;\t", key=first_line.count)
    try:
        reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, skipinitialspace=True, strict=True)
        lines = [(reader.line_num, row) for row in reader if any(field.strip() for field in row)]
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file ({error})") from None
    if not lines:
        raise ValueError(f"{path}: the file is empty")
    first = [field.strip() for field in lines[0][1]]
    names = [f"column {j + 1}" for j in range(len(first))]
    has_header = not any(map(_is_number, first)) if header is None else header
    if has_header:
        names = [field or name for field, name in zip(first, names, strict=True)]
        lines = lines[1:]
    if not lines:
        raise ValueError(f"{path}: no rows below the header")
    values = np.array([_numbers(path, line, row, names) for line, row in lines])
    if header is None and not has_header and _like_names(first):
        either = f"a header or a row of numbers ({shortened(','.join(first))})"
        raise ValueError(f"{path}: line {lines[0][0]}: could be {either}; say which: header=, or --header yes or no")
    if index is None and values.shape[1] > 1 and _numbers_rows(values[:, 0]):
        index = has_header and not first[0]
        if not index:
            what = f"column {names[0]!r} numbers the rows"
            raise ValueError(f"{path}: {what}; say whether it is to be left out: index=, or --index drop or keep")
    return (names[1:], values[:, 1:]) if index else (names, values)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return field.isascii() and "_" not in field  # float() reads 1_000, and digits of other scripts


def _like_names(fields: Sequence[str]) -> bool:
    """Whether numbers are such as columns bear for names: years that rise, or 0, 1, 2, ..."""
    if len(fields) < 2 or not all(field.isdigit() and field.isascii() for field in fields):
        return False
    numbers = list(map(int, fields))
    rising = all(a < b for a, b in itertools.pairwise(numbers))
    return rising and (numbers == list(range(len(numbers))) or 1800 <= numbers[0] <= numbers[-1] <= 2100)


def _numbers_rows(column: np.ndarray) -> bool:
    return len(column) > 2 and column[0] in (0, 1) and bool((np.diff(column) == 1).all())


def _numbers(path: str | Path, line: int, row: Sequence[str], names: Sequence[str]) -> list[float]:
    if len(row) != len(names):
        raise ValueError(f"{path}: line {line} has {len(row)} fields where {len(names)} were expected")
    for name, field in zip(names, map(str.strip, row), strict=True):
        place = f"{path}: column {shortened(name)}, line {line}"
        if not field:
            raise ValueError(f"{place}: the value is missing")
        if not _is_number(field):
            raise ValueError(f"{place}: {shortened(field)} is not a number")
        if not math.isfinite(float(field)):
            raise ValueError(f"{place}: {shortened(field)} is not finite")
    return [float(field) for field in row]
