"""The key of a study: which side is which. It stays with the organiser."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

FORMAT, VERSION = "picture-study key", 1
Kind = Literal["pair", "repeat", "catch"]
Letter = Literal["a", "b"]


@dataclass(frozen=True)
class KeyTrial:
    """What one screen of the page shows.

    Attributes:
        id: as votes name it.
        kind: ``pair`` counts; ``repeat`` is a pair a second time, sides swapped; ``catch`` is one picture or
            video twice.
        pair: index of the pair.
        ours: which of the two (the page calls them a and b) is ours; None in a catch trial.
    """

    id: str
    kind: Kind
    pair: int
    ours: Letter | None


@dataclass(frozen=True)
class KeyPair:
    """A pair by its name, with its prompt where one is known."""

    name: str
    prompt: str | None


@dataclass(frozen=True)
class Key:
    """Everything needed to read the votes of one study.

    Attributes:
        study: its id, which page, key and votes share.
        seed: that the study was drawn with.
        question: that voters were asked.
        ours: name of the method under test.
        against: name of what it is compared with.
        pairs: in the order of their names.
        trials: one for each screen.
    """

    study: str
    seed: int
    question: str
    ours: str
    against: str
    pairs: tuple[KeyPair, ...]
    trials: tuple[KeyTrial, ...]

    @property
    def trial_ids(self) -> frozenset[str]:
        """The ids that votes may name."""
        return frozenset(trial.id for trial in self.trials)

    def to_json(self) -> str:
        """The key as a file holds it."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> Key:
        """Read a key file.

        Raises:
            ValueError: no such file, or no key.
        """
        if not path.is_file():
            raise ValueError(f"--key: got {str(path)!r}, which is no file; give the key.json that `study build` wrote.")
        try:
            return cls._from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"--key: {path} is no key of a study; give the key.json that `study build` wrote."
            ) from None

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> Key:
        if (values.pop("format"), values.pop("version")) != (FORMAT, VERSION):
            raise ValueError("another format")
        values["pairs"] = tuple(KeyPair(**pair) for pair in values["pairs"])
        values["trials"] = tuple(KeyTrial(**trial) for trial in values["trials"])
        key = cls(**values)
        if not all(t.kind in get_args(Kind) and 0 <= t.pair < len(key.pairs) for t in key.trials):
            raise ValueError("an unknown trial")
        return key
