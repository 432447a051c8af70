"""Text files as the programs of their formats read them: UTF-8, lines ended by a line feed, a carriage return, or both."""

from __future__ import annotations

import codecs
from pathlib import Path


def read_text(path: str | Path) -> str:
    """A file's text, a byte order mark taken off, every line ended by a line feed.

    Raises:
        ValueError: in one line: for a file that is missing, compressed, or no text.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a directory, not a file") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    if content.startswith(b"\x1f\x8b"):
        raise ValueError(f"{path}: is compressed by gzip; unpack it first")
    content = content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        text, bad = content.decode("utf-8"), content.find(b"\0")
    except UnicodeDecodeError as error:
        text, bad = "", error.start
    if bad >= 0:
        line = content.count(b"\n", 0, bad) + 1
        raise ValueError(f"{path}: line {line}: not a UTF-8 text file")
    return text


def shortened(x: object, most: int = 40) -> str:
    """`repr` of what a message quotes."""
    text = repr(x)
    return text if len(text) <= most else f"{text[:most]}..."
