"""Places that a command is to write to, refused before it runs if it could not."""

from __future__ import annotations

import os
from pathlib import Path


def check_folder(option: str, folder: Path) -> None:
    """Refuse a folder that could not be made or written into; nothing is made.

    Args:
        option: for the message, such as ``--output``.
        folder: where something will be written.

    Raises:
        ValueError: it, or a folder that it would be in, is a file or not to be written into.
    """
    _check_place(option, folder, folder, "a folder")


def _check_place(option: str, given: Path, folder: Path, wanted: str) -> None:
    place = folder.absolute()
    while not os.path.exists(place):  # Path.exists would raise where it may not look
        place = place.parent
    where = "which" if place == given.absolute() else f"but {str(place)!r}"
    if not os.path.isdir(place):
        raise ValueError(f"{option}: got {str(given)!r}, {where} is a file; give {wanted}.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: got {str(given)!r}, {where} cannot be written into; give another place.")


def check_file(option: str, path: Path | None, *endings: str) -> None:
    """Refuse a file that could not be written, or has another ending; None is none at all.

    Args:
        option: for the message, such as ``--output``.
        path: the file.
        endings: that its name may have, such as ``.png``; any without them.

    Raises:
        ValueError: another ending, a folder, or a place as `check_folder` refuses it.
    """
    if path is None:
        return
    if endings and path.suffix not in endings:
        allowed = " or ".join([", ".join(endings[:-1]), endings[-1]] if endings[1:] else endings)
        raise ValueError(f"{option}: got {str(path)!r}; allowed: a name ending in {allowed}.")
    if os.path.isdir(path):
        raise ValueError(f"{option}: got {str(path)!r}, which is a folder; give the name of a file.")
    _check_place(option, path, path.parent, "another place")
