"""Aligned nucleotide sequences: FASTA and PHYLIP files, and the patterns that their sites show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxem.pytree import static, struct

#: Code of each letter: the four bases, then IUPAC's letters for two or three of them.
LETTERS = "ACGTRYSWKMBDHV"
_MEANINGS = ("A", "C", "G", "T", "AG", "CT", "CG", "AT", "GT", "AC", "CGT", "AGT", "ACT", "ACG")
#: (14, 4) which bases each code stands for.
MEANS = np.array([[base in meaning for base in "ACGT"] for meaning in _MEANINGS])
#: Letters that say nothing: code -1.
GAPS = "-?NX"

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
        listed = ", ".join(f"{name} {length}" for name, length in zip(names, lengths, strict=True))
        raise ValueError(f"aligned sequences must have one length, at least 1; got {listed or 'no sequences'}")
    raw = np.frombuffer("".join(sequences).encode("latin-1", "replace"), np.uint8).reshape(len(sequences), -1)
    codes = _CODES[raw]
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
        ValueError: for what is neither, or sequences that are not aligned.
    """
    lines = [line.rstrip() for line in Path(source).read_text().splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"source must hold sequences; {source} is empty")
    names, sequences = _fasta(lines) if lines[0].startswith(">") else _phylip(lines, source)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"sequences must have names of their own; got {', '.join(twice)} twice")
    return Alignment(tuple(names), encode(sequences, tuple(names)))


def _fasta(lines: list[str]) -> tuple[list[str], list[str]]:
    names, parts = [], []
    for line in lines:
        if line.startswith(">"):
            names.append((line[1:].split() or [""])[0])
            parts.append([])
        else:
            parts[-1].append("".join(line.split()))
    return names, ["".join(p) for p in parts]


def _phylip(lines: list[str], source: Any) -> tuple[list[str], list[str]]:
    head = lines[0].split()
    if len(head) < 2 or not (head[0].isdigit() and head[1].isdigit()):
        raise ValueError(f"source must be FASTA (>name) or PHYLIP (taxa sites); {source} begins with {lines[0][:40]!r}")
    taxa, sites = int(head[0]), int(head[1])
    rows = [line.split() for line in lines[1:]]
    names, parts = _sequential(rows, sites)
    if len(names) != taxa or {len(p) for p in parts} != {sites}:
        # Interleaved: the first block names the taxa, later blocks go on in their order.
        names = [row[0] for row in rows[:taxa]]
        parts = ["".join(row[1:]) for row in rows[:taxa]]
        parts = [p + "".join("".join(row) for row in rows[i + taxa :: taxa]) for i, p in enumerate(parts)]
    if len(names) != taxa or {len(p) for p in parts} != {sites}:
        got = ", ".join(f"{name} {len(part)}" for name, part in zip(names, parts, strict=True))
        raise ValueError(f"{source} must hold {taxa} sequences of {sites} sites, as its first line says; got {got}")
    return names, parts


def _sequential(rows: list[list[str]], sites: int) -> tuple[list[str], list[str]]:
    """Each name followed by as many lines as its sites take."""
    names, parts = [], []
    for row in rows:
        if not parts or len(parts[-1]) >= sites:
            names.append(row[0])
            parts.append("".join(row[1:]))
        else:
            parts[-1] += "".join(row)
    return names, parts
