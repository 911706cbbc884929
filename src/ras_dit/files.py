"""Files that are there whole or not at all, and folders and files that one process has to itself."""

from __future__ import annotations

import codecs
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from PIL import Image

Read = TypeVar("Read")
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


def checked_suffix(what: str, path: Path, *endings: str) -> str:
    """The ending of a file's name, in lower case; the file need not be there.

    Args:
        what: for the message, such as ``config``.
        path: the file.
        endings: allowed ones, such as ``.json``.

    Raises:
        ValueError: another ending.
    """
    suffix = path.suffix.lower()
    if suffix not in endings:
        raise ValueError(f"{what}: got the file name {path.name!r}; allowed: one ending in {_any_of(endings)}.")
    return suffix


def read_as(what: str, path: Path, readers: Mapping[str, Callable[[str], Read]]) -> Read:
    """What a text file holds; errors name the file.

    Args:
        what: for the messages, such as ``config``.
        path: the file.
        readers: by the endings that its name may have, what makes something of its text.

    Raises:
        ValueError: another ending, no such file, or a text that its reader refuses.
    """
    suffix = checked_suffix(what, path, *readers)
    if not path.is_file():
        raise ValueError(f"{what}: got {str(path)!r}, which is no file; give a {_any_of(readers)} file.")
    try:
        return readers[suffix](read_text(path))
    except ValueError as error:
        raise ValueError(f"{what}: {path} could not be read: {error}") from error


def _any_of(endings: Iterable[str]) -> str:
    return " or ".join(", ".join(endings).rsplit(", ", 1))
