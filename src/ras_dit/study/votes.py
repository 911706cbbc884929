"""Votes as voters send them: read with care, for anybody may have written them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ras_dit.study.key import Letter

FORMAT, VERSION = "picture-study votes", 1
MAX_NAME = 80
MAX_SECONDS = 10_000_000  # a page may stay open for months
Choice = Literal["a", "b", "equal"]


@dataclass(frozen=True)
class Vote:
    """What a voter said of one trial.

    Attributes:
        trial: its id.
        choice: the side that is better, or ``equal``.
        left: the one that was on the left (above, on an upright screen).
        seconds: from showing the pair to the vote.
    """

    trial: str
    choice: Choice
    left: Letter
    seconds: float


@dataclass(frozen=True)
class Ballot:
    """The votes of one voter.

    Attributes:
        study: id of the study.
        voter: 32 hexadecimal digits, drawn by the voter's browser.
        name: that the voter gave; may be empty.
        saved: when the last vote was cast (ISO 8601, the voter's clock).
        votes: one for each trial that was answered.
    """

    study: str
    voter: str
    name: str
    saved: str
    votes: tuple[Vote, ...]

    @property
    def label(self) -> str:
        """The name, or the beginning of the voter's id."""
        return self.name or f"voter {self.voter[:8]}"


@dataclass(frozen=True)
class Ballots:
    """The ballots that count, one for each voter.

    Attributes:
        ballots: sorted by the voters' labels.
        notes: what was left out, and what looks odd.
    """

    ballots: tuple[Ballot, ...]
    notes: tuple[str, ...]


def parse_ballot(text: str | bytes, study: str, trials: Collection[str], source: str) -> Ballot:
    """Check and read one voter's JSON.

    Args:
        text: the JSON.
        study: id of the study that it should belong to.
        trials: the ids that it may name.
        source: what to call it in errors.

    Raises:
        ValueError: no votes, votes of another study, or of trials that it does not have.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{source}: is no JSON; give a file that the page's download button made.") from None
    if not isinstance(values, dict) or (values.get("format"), values.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{source}: holds no votes; give a file that the page's download button made.")
    if values.get("study") != study:
        raise ValueError(
            f"{source}: holds votes of study {_short(values.get('study'))}; allowed: those of {study!r}. Read it "
            "with the key of its own study, or move it away."
        )
    voter, name, saved, votes = (values.get(name) for name in ("voter", "name", "saved", "votes"))
    if not isinstance(voter, str) or not re.fullmatch("[0-9a-f]{32}", voter):
        raise ValueError(f"{source}: voter: got {voter!r}; allowed: 32 hexadecimal digits.")
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise ValueError(f"{source}: name: got {_short(name)}; allowed: at most {MAX_NAME} characters.")
    if not isinstance(saved, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", saved):
        raise ValueError(f"{source}: saved: got {_short(saved)}; allowed: a time such as 2026-01-31T09:30:00.000Z.")
    if not isinstance(votes, list) or len(votes) > len(trials):
        raise ValueError(f"{source}: votes: got {_short(votes)}; allowed: a list of at most {len(trials)}.")
    parsed = tuple(_parse_vote(vote, trials, source) for vote in votes)
    if len({vote.trial for vote in parsed}) < len(parsed):
        raise ValueError(f"{source}: votes on one trial twice; allowed: once.")
    printable = "".join(character for character in name if character.isprintable()).strip()
    return Ballot(study, voter, printable, saved, parsed)


def _parse_vote(values: Any, trials: Collection[str], source: str) -> Vote:
    if not isinstance(values, dict):
        raise ValueError(f"{source}: got the vote {_short(values)}; allowed: an object.")
    trial, choice, left = (values.get(name) for name in ("trial", "choice", "left"))
    seconds: Any = values.get("seconds")
    if not isinstance(trial, str) or trial not in trials:
        raise ValueError(f"{source}: got a vote on {_short(trial)}, which is no trial of this study.")
    if choice not in get_args(Choice):
        raise ValueError(f"{source}: choice: got {_short(choice)}; allowed: {', '.join(get_args(Choice))}.")
    if left not in get_args(Letter):
        raise ValueError(f"{source}: left: got {_short(left)}; allowed: {', '.join(get_args(Letter))}.")
    if type(seconds) not in (int, float) or not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"{source}: seconds: got {_short(seconds)}; allowed: 0 to {MAX_SECONDS}.")
    return Vote(trial, cast(Choice, choice), cast(Letter, left), float(seconds))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def ballot_json(ballot: Ballot) -> str:
    """A ballot as a file holds it."""
    votes = [{"trial": v.trial, "left": v.left, "choice": v.choice, "seconds": v.seconds} for v in ballot.votes]
    values = {"format": FORMAT, "version": VERSION, "study": ballot.study, "voter": ballot.voter, "name": ballot.name}
    return json.dumps({**values, "saved": ballot.saved, "votes": votes}, indent=1, ensure_ascii=False) + "\n"


def read_ballots(paths: Sequence[Path], study: str, trials: Collection[str]) -> Ballots:
    """Read the votes of files and of folders (their .json files), and keep the last word of every voter.

    Args:
        paths: files and folders.
        study: id of the study.
        trials: ids of its trials.

    Raises:
        ValueError: no such file, none at all, or one that `parse_ballot` refuses.
    """
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise ValueError(f"votes: {', '.join(map(str, paths)) or 'no path'} holds no .json file; collect votes first.")
    latest: dict[str, Ballot] = {}
    notes = []
    for file in files:
        ballot = parse_ballot(file.read_bytes(), study, trials, str(file))
        before = latest.get(ballot.voter)
        if before is not None:
            last = max(ballot.saved, before.saved)
            notes.append(f"{ballot.label}: voted in more than one file; the last counts, of {last}.")
        if before is None or ballot.saved >= before.saved:
            latest[ballot.voter] = ballot
    ballots = sorted(latest.values(), key=lambda ballot: (ballot.label.lower(), ballot.voter))
    names = [ballot.name for ballot in ballots if ballot.name]
    for name in sorted({name for name in names if names.count(name) > 1}):
        notes.append(f"{name}: {names.count(name)} voters of this name; counted one by one.")
    for ballot in ballots:
        if len(ballot.votes) < len(trials):
            notes.append(f"{ballot.label}: voted on {len(ballot.votes)} of {len(trials)} screens; these count.")
    return Ballots(tuple(ballots), tuple(notes))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.glob("*.json") if not file.name.startswith("."))
    if not path.is_file():
        raise ValueError(f"votes: got {str(path)!r}, which is no file; give files of votes, or folders of them.")
    return [path]
