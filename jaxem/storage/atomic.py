"""Files written at once: whoever reads, even after a power cut, sees the old file or the whole new one."""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from pathlib import Path
from typing import Any

#: How files are called while they are written; a process that is killed leaves one behind.
PART = ".jaxem-{}.part"


def write_bytes(path: str | Path, content: Any) -> None:
    """Write a file, or what a link points to; any number of threads and processes may write and read it meanwhile.

    Raises:
        ValueError: where `path` is a folder, a device, or whatever else no file can take the place of.
        OSError: where the folder is missing, or the disk is full; nothing is left of the new file then.
    """
    place = checked_place(path)
    part = place.with_name(PART.format(uuid.uuid4().hex))
    try:
        with open(part, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            part.chmod(stat.S_IMODE(place.stat().st_mode))
        os.replace(part, place)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error  # which names the part
    finally:
        part.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # the new name must reach the disk too, where the system knows how
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def checked_place(path: str | Path) -> Path:
    """Where a file of this name is to lie, links followed; raises as `write_bytes` does."""
    place = Path(os.path.realpath(path))
    if (place.exists() or place.is_symlink()) and not place.is_file():
        raise ValueError(f"{path}: must be a file, or a name that is free; it is a folder, a device or the like")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {place.parent}")
    return place


def checked_folder(path: str | Path) -> None:
    """Make a folder where there is none, and see that files can be written there.

    Raises:
        OSError: where not.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / PART.format(uuid.uuid4().hex)
    try:
        probe.touch()
    finally:
        probe.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed left behind; for a folder in which nobody else writes."""
    for part in folder.glob(PART.format("*")):
        part.unlink(missing_ok=True)
