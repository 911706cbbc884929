"""Files that are there whole or not at all, and the prompts read from files."""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

PROMPT_KEYS = (
    "prompt",
    "negative_prompt",
    "seed",
    "steps",
    "guidance",
    "true_cfg_scale",
    "height",
    "width",
    "num_frames",
    "image",
    "mask_image",
    "control_image",
)
FRAMES_PER_SECOND = 16
"""That videos are shown at unless somebody asks for others."""
LONGEST_DIFFERENCE = 120
"""Characters that `differences` spends on one value."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=f".part{path.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def save_png(
    image: Image.Image | Sequence[Image.Image],
    path: Path,
    metadata: Mapping[str, Any] | None = None,
    fps: int = FRAMES_PER_SECOND,
) -> None:
    """Write a PNG with text chunks; values that are no strings are written as JSON.

    Args:
        image: a picture, or the frames of a video, which make an animated PNG: browsers play it, nothing is lost,
            and frames that are equal stay as many as they are.
        path: where.
        metadata: the text chunks.
        fps: frames per second of a video.
    """
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in (metadata or {}).items():
        chunks.add_itxt(key, value if isinstance(value, str) else json.dumps(value))
    first, *others = image if isinstance(image, Sequence) else [image]
    animated = animation([first, *others], 1000 / fps) if others else {}
    with whole_file(path) as temporary:
        first.save(temporary, format="PNG", pnginfo=chunks, **animated)


def animation(frames: Sequence[Image.Image], duration: float | Sequence[float]) -> dict[str, Any]:
    """What Pillow has to know to save the first of some frames as a PNG of all, shown for ever.

    Args:
        frames: at least two.
        duration: of all frames or of each, in milliseconds.
    """
    options: dict[str, Any] = {"save_all": True, "append_images": list(frames[1:]), "duration": duration, "loop": 0}
    if "A" not in frames[0].mode:  # where all is opaque, blends look the same; Pillow joins equal frames of equal blend
        options["blend"] = [index % 2 for index in range(len(frames))]
    return options


def save_text(text: str, path: Path) -> None:
    """Write a text file in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a mark at its start; that mark is left out.

    Raises:
        ValueError: another encoding.
    """
    content = path.read_bytes()
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"got {str(path)!r}, which is no text in UTF-8 ({error}); save it as UTF-8.") from error


@contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """No other process does the same in this folder meanwhile; the system ends the claim of one that was killed.

    Args:
        folder: where; a file ``lock`` stays there.
        what: for the message.

    Raises:
        ValueError: another one does.
    """
    busy = f"{folder}: another {what} is under way there; wait for it, or give another folder."
    with _alone(folder / "lock", busy):
        yield


@contextmanager
def alone_with(option: str, path: Path, what: str) -> Iterator[None]:
    """Likewise with a file, which need not be there yet.

    Args:
        option: for the message, such as ``--output``.
        path: the file; an empty one beside it, ``.NAME.lock``, stays there.
        what: for the message.

    Raises:
        ValueError: another process does the same.
    """
    busy = f"{option}: got {str(path)!r}, where another {what} is under way; wait for it, or give another file."
    with _alone(path.with_name(f".{path.name}.lock"), busy):
        yield


@contextmanager
def _alone(lock: Path, busy: str) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    stream: IO[bytes]
    try:
        stream = lock.open("a+b")
    except PermissionError:
        stream = lock.open("rb")  # somebody else's, in a folder that is shared
    with stream:
        try:
            _lock(stream.fileno())
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(busy) from error
        except OSError:
            pass  # a file system without locks
        yield


def _lock(descriptor: int) -> None:
    """Lock an open file until it is closed, or fail at once."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def claim_folder(path: Path, purpose: Mapping[str, Any]) -> dict[str, str]:
    """Write into a folder what it is for, or compare that with what it was for before.

    Args:
        path: the JSON file that says it.
        purpose: names and values that JSON can hold.

    Returns:
        The names whose values differ from those of before, and how (`differences`); nothing is written then.
    """
    wanted = json.loads(json.dumps(purpose))
    if not path.is_file():
        save_text(json.dumps(wanted, indent=1) + "\n", path)
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    names = sorted(name for name in {*before, *wanted} if before.get(name) != wanted.get(name))
    return {name: differences(name, wanted.get(name), before.get(name)) for name in names}


def differences(name: str, wanted: Any, before: Any) -> str:
    """What differs between two values of JSON, as ``config.sample_ratio: got 0.5, there 0.25``; of long values the
    name and the lengths of lists."""
    if isinstance(wanted, Mapping) and isinstance(before, Mapping):
        inner = [key for key in {**before, **wanted} if wanted.get(key) != before.get(key)]
        return "; ".join(
            differences(f"{name}.{key}" if name else str(key), wanted.get(key), before.get(key)) for key in inner
        )
    told = f"{name}: got {json.dumps(wanted)}, there {json.dumps(before)}"
    if len(told) <= LONGEST_DIFFERENCE:
        return told
    has_counts = isinstance(wanted, list) and isinstance(before, list) and len(wanted) != len(before)
    return f"{name}: got {len(wanted)}, there {len(before)}" if has_counts else name


def read_prompts(path: Path, keys: Sequence[str] = PROMPT_KEYS) -> list[dict[str, Any]]:
    """The prompts of a file: ``.txt`` with one a line (none of a line that begins with #), ``.jsonl`` with one object a
    line.

    Args:
        path: the file.
        keys: that an object may have; others are refused, so that none is ignored.

    Returns:
        Mappings with ``prompt`` and whichever of the other keys the file gives; an ``image``, a ``mask_image`` and a
        ``control_image`` are paths, taken from the folder of the file if they are relative.

    Raises:
        ValueError: no such file, another ending, no prompt, or a line that cannot be read.
    """
    return list(numbered_prompts(path, keys).values())


def numbered_prompts(path: Path, keys: Sequence[str] = PROMPT_KEYS) -> dict[int, dict[str, Any]]:
    """What `read_prompts` reads, by the number of its line."""
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"--prompts-file: got {str(path)!r}; allowed: a .txt file (a prompt a line) or .jsonl.")
    if not path.is_file():
        raise ValueError(f"--prompts-file: got {str(path)!r}, which is no file.")
    try:
        lines = re.split(r"\r\n|\r|\n", read_text(path))  # no others: JSON has them inside of its strings
    except ValueError as error:
        raise ValueError(f"--prompts-file: {error}") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix == ".txt":
        prompts = {number: {"prompt": line} for number, line in numbered if not line.startswith("#")}
    else:
        prompts = {number: _read_object(path, number, line, keys) for number, line in numbered}
    if not prompts:
        raise ValueError(f"--prompts-file: {path} holds no prompt.")
    return prompts


def _read_object(path: Path, number: int, line: str, keys: Sequence[str]) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"--prompts-file: {path}, line {number}: no JSON ({error}).") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise ValueError(f'--prompts-file: {path}, line {number}: give an object such as {{"prompt": "a fox"}}.')
    if unknown := sorted(set(entry) - set(keys)):
        why = " (in this command)" if set(unknown) <= set(PROMPT_KEYS) else ""
        raise ValueError(
            f"--prompts-file: {path}, line {number}: got {', '.join(unknown)}; allowed{why}: {', '.join(keys)}."
        )
    for key in ("seed", "steps", "height", "width", "num_frames"):
        if key in entry and type(entry[key]) is not int:
            raise ValueError(f"--prompts-file: {path}, line {number}: {key}: got {entry[key]!r}; allowed: an int.")
    for key in ("guidance", "true_cfg_scale"):
        if key in entry and type(entry[key]) not in (int, float):
            raise ValueError(f"--prompts-file: {path}, line {number}: {key}: got {entry[key]!r}; give a number.")
    if not isinstance(entry.get("negative_prompt", ""), str):
        raise ValueError(
            f"--prompts-file: {path}, line {number}: negative_prompt: got {entry['negative_prompt']!r}; give a text."
        )
    for key in {"image", "mask_image", "control_image"} & set(entry):
        if not isinstance(entry[key], str):
            raise ValueError(f"--prompts-file: {path}, line {number}: {key}: got {entry[key]!r}; give a file.")
        entry[key] = path.parent / entry[key]
    return entry
