"""A study drawn from pairs: the page that voters get, and the key that they do not."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ras_dit.files import save_text
from ras_dit.study.key import Key, KeyPair, KeyTrial, Letter
from ras_dit.study.pairs import Pair
from ras_dit.study.pictures import CleanPicture, clean_picture

PAGE, KEY, VOTES = "study.html", "key.json", "votes"
QUESTION = "Which {noun} is better?"
MIN_SIDE = 16
SEED_BITS = 128  # nobody tries them all
LETTERS: tuple[Letter, Letter] = ("a", "b")
MAX_BYTES = 500 * 2**20  # of all pictures in a page: V8, Chromium's, has no strings beyond 2**29 - 24 characters


@dataclass(frozen=True)
class StudyConfig:
    """How a study is drawn.

    Attributes:
        question: what voters are asked; None asks which picture, or which video, is better.
        num_pairs: pairs in the study, drawn by chance; None takes all.
        num_repeats: pairs that come a second time with their sides swapped, at most all.
        num_catches: screens that show one picture or video twice, at most one for each pair.
        seed: of everything that is drawn; None takes one that nobody can guess.
        max_side: larger pictures and videos are scaled down to this many pixels; None keeps every pixel.
        shows_prompts: whether voters see the prompts.
    """

    question: str | None = None
    num_pairs: int | None = None
    num_repeats: int = 0
    num_catches: int = 0
    seed: int | None = None
    max_side: int | None = None
    shows_prompts: bool = True

    def __post_init__(self) -> None:
        if self.question is not None and not self.question.strip():
            raise ValueError("question: got none; give what voters are asked.")
        for name, least in (("num_pairs", 1), ("num_repeats", 0), ("num_catches", 0), ("max_side", MIN_SIDE)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: got {value}; allowed: at least {least}.")


@dataclass(frozen=True)
class Study:
    """A page and its key.

    Attributes:
        html: the page, with everything in it.
        key: what tells the sides apart.
    """

    html: str
    key: Key

    @property
    def num_bytes(self) -> int:
        """Size of the page."""
        return len(self.html.encode())

    def save(self, folder: Path, overwrite: bool = False) -> list[Path]:
        """Write ``study.html`` and ``key.json``.

        Args:
            folder: where.
            overwrite: take the place of another study, whose votes and key are moved aside together.

        Returns:
            Where they are now; empty if there was no other study.

        Raises:
            ValueError: the folder holds the key of another study, whose votes could no longer be read.
        """
        path = folder / KEY
        moved: list[Path] = []
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != self.key.to_json():
            if not overwrite:
                raise ValueError(
                    f"{folder}: holds another study, whose votes need its key; give another folder, or --overwrite, "
                    "which moves both aside."
                )
            moved = _put_aside(folder)
        save_text(self.key.to_json(), path)
        save_text(self.html, folder / PAGE)
        return moved


def _put_aside(folder: Path) -> list[Path]:
    """Move the votes and the key of a study to names with its id, which are free for both; where they are now."""
    path = folder / KEY
    try:
        study = re.sub(r"\W", "-", str(Key.load(path).study))
    except ValueError:
        study = "unreadable"
    for number in itertools.count(1):
        ending = f"-{study}" if number == 1 else f"-{study}-{number}"
        places = {folder / VOTES: folder / f"{VOTES}{ending}", path: path.with_stem(f"{path.stem}{ending}")}
        if not any(place.exists() for place in places.values()):
            break
    moved = {source: place for source, place in places.items() if source.exists()}
    for source, place in moved.items():  # votes first: the key says that they are still to be moved
        source.rename(place)
    return list(moved.values())


def build_study(
    pairs: Sequence[Pair],
    ours: str,
    against: str,
    config: StudyConfig | None = None,
    on_pair: Callable[[], None] = lambda: None,
) -> Study:
    """Draw a study of pictures, or of videos.

    The two of a pair are called a and b; ours is a in half of the pairs. The page shows all trials in an order of each
    voter's own, with a on the left, or all mirrored. Nothing in it depends on which one is ours.

    Args:
        pairs: what is compared.
        ours: name of the method under test, for the key.
        against: name of what it is compared with, for the key.
        config: how it is drawn.
        on_pair: called after every pair that was read.

    Raises:
        ValueError: fewer pairs than asked for, the two of a pair differ in size, number of frames or their durations,
            pictures and videos in one study, or more bytes of them than a browser reads.
    """
    config = config or StudyConfig()
    seed = secrets.randbits(SEED_BITS) if config.seed is None else config.seed
    chance = random.Random(f"picture study {seed}")
    pairs = _drawn(pairs, config, chance)
    study = _hex(chance)
    sides = _balanced_sides(len(pairs), chance)
    trials = _draw_trials(sides, config, chance)
    pictures: dict[str, str] = {}
    ids: list[dict[Letter, str]] = []
    nouns: dict[str, Path] = {}
    for pair, side in zip(pairs, sides, strict=True):
        ours_clean, against_clean = _read_pair(pair, config.max_side)
        nouns.setdefault(ours_clean.noun, pair.ours)
        ids.append(_add_pictures(ours_clean, against_clean, side, pictures, chance))
        _check_page(nouns, pictures)
        on_pair()
    (noun,) = nouns
    question = QUESTION.format(noun=noun) if config.question is None else config.question
    prompts = [pair.prompt if config.shows_prompts else None for pair in pairs]
    page = {
        "id": study,
        "question": question,
        "noun": noun,
        "trials": _entries(trials, ids, prompts, chance),
        "pictures": dict(sorted(pictures.items())),  # by their ids, which are random
    }
    named = tuple(KeyPair(pair.name, pair.prompt) for pair in pairs)
    return Study(page_html(page), Key(study, seed, question, ours, against, named, tuple(trials)))


def _draw_trials(sides: Sequence[Letter], config: StudyConfig, chance: random.Random) -> list[KeyTrial]:
    indices = range(len(sides))
    trials = [KeyTrial(_hex(chance), "pair", index, sides[index]) for index in indices]
    trials += [
        KeyTrial(_hex(chance), "repeat", index, sides[index]) for index in chance.sample(indices, config.num_repeats)
    ]
    trials += [KeyTrial(_hex(chance), "catch", index, None) for index in chance.sample(indices, config.num_catches)]
    chance.shuffle(trials)
    return trials


def _entries(
    trials: Sequence[KeyTrial], ids: Sequence[dict[Letter, str]], prompts: Sequence[str | None], chance: random.Random
) -> list[dict[str, str | None]]:
    """What the page knows of its trials: ids of pictures, and which trial another one repeats."""
    originals = {trial.pair: trial.id for trial in trials if trial.kind == "pair"}
    entries: list[dict[str, str | None]] = []
    for trial in trials:
        shown = ids[trial.pair]
        if trial.kind == "catch":
            shown = dict.fromkeys(LETTERS, shown[chance.choice(LETTERS)])
        again = originals[trial.pair] if trial.kind == "repeat" else None
        entries.append(
            {"id": trial.id, "a": shown["a"], "b": shown["b"], "prompt": prompts[trial.pair], "again": again}
        )
    return entries


def _drawn(pairs: Sequence[Pair], config: StudyConfig, chance: random.Random) -> list[Pair]:
    wanted = len(pairs) if config.num_pairs is None else config.num_pairs
    if not 1 <= wanted <= len(pairs):
        raise ValueError(f"num_pairs: got {wanted}; allowed: 1 to {len(pairs)}, as many as there are.")
    for name in ("num_repeats", "num_catches"):
        if getattr(config, name) > wanted:
            raise ValueError(f"{name}: got {getattr(config, name)}; allowed: 0 to {wanted}, the number of pairs.")
    return [pairs[index] for index in sorted(chance.sample(range(len(pairs)), wanted))]


def _balanced_sides(count: int, chance: random.Random) -> list[Letter]:
    """As many a as b (one more of either in an odd number), in random order."""
    letters = chance.sample(LETTERS, 2)
    sides = [letters[index % 2] for index in range(count)]
    chance.shuffle(sides)
    return sides


def _read_pair(pair: Pair, max_side: int | None) -> tuple[CleanPicture, CleanPicture]:
    """Both of a pair, which nothing but their pixels tells apart."""
    ours, against = (clean_picture(path, max_side) for path in (pair.ours, pair.against))
    if (ours.width, ours.height) != (against.width, against.height):
        raise ValueError(
            f"study: {pair.ours} has {ours.width} x {ours.height} pixels, {pair.against} {against.width} x "
            f"{against.height}; allowed: pairs of one size."
        )
    if ours.num_frames != against.num_frames:
        raise ValueError(
            f"study: {pair.ours} has {ours.num_frames} frame(s), {pair.against} {against.num_frames}; allowed: two "
            "pictures, or two videos of as many frames; make both sides with the same number of frames."
        )
    for index, durations in enumerate(zip(ours.durations, against.durations, strict=True)):
        if durations[0] != durations[1]:
            raise ValueError(
                f"study: frame {index} of {pair.ours} lasts {durations[0]:g} ms, of {pair.against} {durations[1]:g} "
                "ms; allowed: equal durations, as speed tells the sides apart; write both with the same frames per "
                "second."
            )
    return ours, against


def _check_page(nouns: dict[str, Path], pictures: dict[str, str]) -> None:
    if len(nouns) > 1:
        kinds = " and ".join(f"the {noun} {path}" for noun, path in nouns.items())
        raise ValueError(f"study: got {kinds}; allowed: pictures alone or videos alone; build a study of each.")
    size = sum(map(len, pictures.values()))
    if size > MAX_BYTES:
        raise ValueError(
            f"study: {len(pictures) // 2} pair(s) make a page of {size / 2**20:.0f} MB; allowed: "
            f"{MAX_BYTES / 2**20:.0f} MB, as Chromium reads no more; take fewer (num_pairs), or scale them down "
            "(max_side)."
        )


def _add_pictures(
    ours: CleanPicture, against: CleanPicture, side: Letter, pictures: dict[str, str], chance: random.Random
) -> dict[Letter, str]:
    """Put both of a pair under ids of their own; returns those of a and b."""
    found: dict[Letter, str] = {}
    for letter in LETTERS:
        picture = ours if letter == side else against
        found[letter] = _hex(chance)
        pictures[found[letter]] = base64.b64encode(picture.png).decode()
    return found


def _hex(chance: random.Random) -> str:
    """An id. Hashed, so that ids do not give away what else was drawn."""
    return hashlib.sha256(chance.randbytes(32)).hexdigest()[:24]


def page_html(page: dict[str, Any]) -> str:
    """The page with its data, style and script in it; a content policy lets nothing else run or load."""
    assets = resources.files("ras_dit.study").joinpath("assets")
    template, style, script = (
        assets.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    data = json.dumps(page, ensure_ascii=False)
    for character in "<>&\u2028\u2029":  # nothing in a prompt may end the script element
        data = data.replace(character, f"\\u{ord(character):04x}")
    parts = {
        "noun": page["noun"],
        "style_hash": _policy_hash(style),
        "script_hash": _policy_hash(script),
        "style": style,
        "script": script,
        "data": data,
    }
    for name, text in parts.items():  # data last: a prompt may look like a place of the template
        template = template.replace("{{" + name + "}}", text)
    return template


def _policy_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
