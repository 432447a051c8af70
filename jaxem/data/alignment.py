"""Aligned nucleotide sequences: FASTA and PHYLIP files, and the patterns that their sites show."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from jaxem.data.text import read_text, shortened
from jaxem.pytree import static, struct

#: Code of each letter: the four bases, then IUPAC's letters for two or three of them.
LETTERS = "ACGTRYSWKMBDHV"
_MEANINGS = ("A", "C", "G", "T", "AG", "CT", "CG", "AT", "GT", "AC", "CGT", "AGT", "ACT", "ACG")
#: (14, 4) which bases each code stands for.
MEANS = np.array([[base in meaning for base in "ACGT"] for meaning in _MEANINGS])
#: Letters that say nothing: code -1.
GAPS = "-?NX"
_OTHER = re.compile(rf"[^{re.escape(LETTERS + GAPS)}U\s]", re.IGNORECASE | re.ASCII)

_CODES = np.full(256, -2, np.int8)
for _letter in LETTERS + LETTERS.lower():
    _CODES[ord(_letter)] = LETTERS.index(_letter.upper())
_CODES[[ord(c) for c in "Uu"]] = LETTERS.index("T")
_CODES[[ord(c) for c in GAPS + GAPS.lower()]] = -1


@struct
class Alignment:
    """Aligned sequences.

    Attributes:
        names: of the taxa.
        codes: (sites, taxa) int8: 0..3 for A, C, G, T, 4..13 for R, Y, S, W, K, M, B, D, H, V, -1 for a gap.
    """

    names: tuple[str, ...] = static()
    codes: Any

    def patterns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distinct sites (N, taxa), how often each occurs (N,), and which of them each site shows (sites,)."""
        patterns, index, counts = np.unique(self.codes, axis=0, return_inverse=True, return_counts=True)
        return patterns, counts.astype(float), index.reshape(-1)


def encode(sequences: list[str], names: tuple[str, ...] | None = None) -> np.ndarray:
    """(sites, taxa) codes of aligned sequences.

    Raises:
        ValueError: for sequences of different lengths, or a letter that is no nucleotide.
    """
    names = tuple(map(str, range(len(sequences)))) if names is None else names
    lengths = [len(s) for s in sequences]
    if not lengths or min(lengths) == 0 or min(lengths) != max(lengths):
        listed = ", ".join(f"{name} {length}" for name, length in zip(names[:20], lengths, strict=False))
        raise ValueError(f"aligned sequences must have one length, at least 1; got {listed or 'no sequences'}")
    # Code points: beyond Latin-1 there is no nucleotide.
    raw = np.frombuffer("".join(sequences).encode("utf-32-le", "surrogatepass"), np.uint32).reshape(len(sequences), -1)
    codes = _CODES[np.minimum(raw, 255)]
    if (codes == -2).any():
        taxon, site = np.argwhere(codes == -2)[0]
        got = f"{sequences[taxon][site]!r} in {names[taxon]}, site {site + 1}"
        raise ValueError(f"sequences must consist of the nucleotides {LETTERS}, U, or gaps {GAPS}; got {got}")
    return np.ascontiguousarray(codes.T)


def read_alignment(source: str | Path) -> Alignment:
    """Aligned nucleotides from a FASTA or PHYLIP file (sequential or interleaved, names without blanks).

    Args:
        source: path of the file.

    Raises:
        ValueError: for what is neither, for sequences that are not aligned, and a file that is missing or compressed.
    """
    lines = [(i, line.strip()) for i, line in enumerate(read_text(source).split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"source must hold sequences; {source} is empty")
    for i, line in lines[1:] if lines[0][1].startswith(">") else ():
        _check_line(source, i, line)
    names, sequences = _fasta(source, lines) if lines[0][1].startswith(">") else _phylip([line for _, line in lines], source)
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"sequences must have names of their own; got {', '.join(twice[:20])} twice, in {source}")
    try:
        return Alignment(tuple(names), encode(sequences, tuple(names)))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _check_line(source: Any, i: int, line: str) -> None:
    """Raise ValueError for a letter of a FASTA file that is no nucleotide."""
    bad = None if line.startswith(">") else _OTHER.search(line)
    if bad:
        raise ValueError(
            f"{source}: line {i}: sequences must consist of the nucleotides {LETTERS}, U, or gaps {GAPS}; got {bad[0]!r}"
        )


def _fasta(source: Any, lines: list[tuple[int, str]]) -> tuple[list[str], list[str]]:
    names, parts = [], []
    for i, line in lines:
        if line.startswith(">"):
            names.append((line[1:].split() or [""])[0])
            if not names[-1]:
                raise ValueError(f"{source}: line {i}: a sequence must have a name after its >")
            parts.append([])
        else:
            parts[-1].append("".join(line.split()))
    return names, ["".join(p) for p in parts]


def _phylip(lines: list[str], source: Any) -> tuple[list[str], list[str]]:
    head = lines[0].split()
    if not (len(head) >= 2 and all(re.fullmatch("[1-9][0-9]{0,11}", size) for size in head[:2])):
        got = shortened(lines[0])
        raise ValueError(f"source must be FASTA (>name) or PHYLIP (taxa sites); {source} begins with {got}")
    taxa, sites = int(head[0]), int(head[1])
    rows = [line.split() for line in lines[1:]]
    names, parts = _sequential(rows, sites)
    if len(names) != taxa or {len(p) for p in parts} != {sites}:
        # Interleaved: the first block names the taxa, later blocks go on in their order.
        names = [row[0] for row in rows[:taxa]]
        parts = ["".join("".join(row) for row in ([first[1:], *rows[i + taxa :: taxa]])) for i, first in enumerate(rows[:taxa])]
    if len(names) != taxa or {len(p) for p in parts} != {sites}:
        got = ", ".join(f"{name} {len(part)}" for name, part in zip(names[:20], parts, strict=False))
        raise ValueError(f"{source} must hold {taxa} sequences of {sites} sites, as its first line says; got {got}")
    return names, parts


def _sequential(rows: list[list[str]], sites: int) -> tuple[list[str], list[str]]:
    """Each name followed by as many lines as its sites take."""
    names, parts, left = [], [], 0
    for row in rows:
        if left <= 0:
            names.append(row[0])
            parts.append([])
            row, left = row[1:], sites
        parts[-1] += row
        left -= sum(map(len, row))
    return names, ["".join(p) for p in parts]
