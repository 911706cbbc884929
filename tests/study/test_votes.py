"""Votes are read with care, and counted from our side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ras_dit.study import Ballots, Key, Results, Study, read_ballots, tally
from ras_dit.study.plot import plot
from ras_dit.study.votes import parse_ballot
from study.conftest import NUM_PAIRS, ballot


def write(folder: Path, name: str, values: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


def read(key: Key, *paths: Path) -> Ballots:
    return read_ballots(paths, key.study, key.trial_ids)


def ann(pair: int, kind: str) -> str:
    """Wins 4, one tie, one loss; sees through a catch; reverses the repeats."""
    if kind == "catch":
        return "tie"
    if kind == "repeat":
        return "loss"
    return {0: "tie", 1: "loss"}.get(pair, "win")


def ben(pair: int, kind: str) -> str:
    """Ties, one win; takes a catch for different; repeats himself."""
    if kind == "catch":
        return "win"
    return "win" if pair == 2 else "tie"


@pytest.fixture
def results(study: Study, tmp_path: Path) -> Results:
    write(tmp_path, "votes/ann.json", ballot(study.key, ann, "Ann", 1))
    write(tmp_path, "votes/ben.json", ballot(study.key, ben, "Ben", 2))
    found = read(study.key, tmp_path / "votes")
    return tally(study.key, found.ballots, found.notes)


def test_counts(study: Study, results: Results) -> None:
    assert (results.tally.win, results.tally.tie, results.tally.loss) == (5, 6, 1)
    assert results.tally.total == 2 * NUM_PAIRS, "repeats and catches are left out"
    assert results.tally.preferred.value == pytest.approx(5 / 6)
    assert results.tally.preferred.p_value == pytest.approx(2 * (1 + 6) / 64)
    assert [(v.label, v.tally.win, v.tally.tie, v.tally.loss) for v in results.voters] == [
        ("Ann", 4, 1, 1),
        ("Ben", 1, 5, 0),
    ]
    # pairs: 0 tie tie, 1 loss tie, 2 win win, 3 to 5 win tie
    assert [(p.tally.win, p.tally.tie, p.tally.loss) for p in results.pairs] == [
        (0, 2, 0),
        (0, 1, 1),
        (2, 0, 0),
        *[(1, 1, 0)] * 3,
    ]
    assert (results.by_pair.win, results.by_pair.tie, results.by_pair.loss) == (4, 1, 1)
    assert (results.by_voter.win, results.by_voter.tie, results.by_voter.loss) == (2, 0, 0)
    assert not results.notes


def test_checks(study: Study, results: Results) -> None:
    assert (results.caught.count, results.caught.total) == (1, 2)
    repeated = [trial.pair for trial in study.key.trials if trial.kind == "repeat"]
    assert results.same.total == 4
    assert results.same.count == sum(ann(pair, "pair") == "loss" for pair in repeated) + 2
    assert results.reversed.count == sum(ann(pair, "pair") == "win" for pair in repeated)
    decided = 5 + 2 + (1 + sum(pair == 2 for pair in repeated)) + 1  # Ann's pairs and repeats, Ben's, his catch
    assert results.left.total == decided
    assert results.left.count == decided - 1 - 2, "ours stood on the left; Ann's losses are on the right"


def test_results_as_json(results: Results) -> None:
    values = json.loads(json.dumps(results.to_dict()))
    votes = values["votes"]
    assert (votes["win"]["count"], votes["win"]["total"], votes["win"]["share"]) == (5, 12, 5 / 12)
    assert votes["win"]["interval"] == pytest.approx([0.1933, 0.6805], abs=5e-5)
    assert votes["preferred"]["p_value"] == pytest.approx(0.21875)
    assert [voter["label"] for voter in values["voters"]] == ["Ann", "Ben"]
    assert len(values["pairs"]) == NUM_PAIRS


def test_plot(results: Results, tmp_path: Path) -> None:
    plot(results, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 600
    assert (tmp_path / "plot.png").stat().st_size < 200_000


def test_last_word_of_a_voter_counts(study: Study, tmp_path: Path) -> None:
    late = write(tmp_path, "a.json", ballot(study.key, lambda *_: "win", "Ann", 1, saved="2026-01-31T10:00:00.000Z"))
    early = write(tmp_path, "b.json", ballot(study.key, lambda *_: "loss", "Ann", 1))
    for paths in ((late, early), (early, late)):
        found = read(study.key, *paths)
        assert len(found.ballots) == 1
        assert tally(study.key, found.ballots).tally.win == NUM_PAIRS
        assert found.notes == ("Ann: voted in more than one file; the last counts, of 2026-01-31T10:00:00.000Z.",)


def test_notes(study: Study, tmp_path: Path) -> None:
    short = ballot(study.key, ann, "Ann", 1)
    short["votes"] = short["votes"][:3]
    write(tmp_path, "a.json", short)
    write(tmp_path, "b.json", ballot(study.key, ann, "Ann", 2))
    write(tmp_path, ".c.part.json", "not yet whole")
    notes = read(study.key, tmp_path).notes
    assert notes == ("Ann: 2 voters of this name; counted one by one.", "Ann: voted on 3 of 9 screens; these count.")


def test_names_are_only_text(study: Study) -> None:
    values = ballot(study.key, ann, "[red]\x1b[31mAnn\u202e ")
    found = parse_ballot(json.dumps(values), study.key.study, study.key.trial_ids, "votes")
    assert found.name == "[red][31mAnn"
    unnamed = parse_ballot(json.dumps({**values, "name": ""}), study.key.study, study.key.trial_ids, "votes")
    assert unnamed.label == "voter 00000000"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study": "feed"}, "holds votes of study 'feed'"),
        ({"format": "key"}, "holds no votes"),
        ({"version": 2}, "holds no votes"),
        ({"voter": "../../etc"}, "32 hexadecimal"),
        ({"voter": None}, "32 hexadecimal"),
        ({"name": "x" * 81}, "at most 80"),
        ({"name": 3}, "at most 80"),
        ({"saved": "yesterday"}, "a time such as"),
        ({"votes": {}}, "a list"),
        ({"votes": [{}] * 20}, "at most 9"),
        ({"votes": ["win"]}, "an object"),
        ({"votes": [{"trial": "feed"}]}, "no trial of this study"),
        ({"choice": "ours"}, "choice: got 'ours'; allowed: a, b, equal"),
        ({"left": "c"}, "left: got 'c'"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": 10**400}, "seconds"),
        ({"seconds": True}, "seconds"),
    ],
)
def test_votes_are_checked(study: Study, tmp_path: Path, changes: dict, message: str) -> None:
    values = ballot(study.key, ann)
    for name, value in changes.items():
        (values if name in values else values["votes"][0])[name] = value
    with pytest.raises(ValueError, match=message) as caught:
        read(study.key, write(tmp_path, "votes.json", values))
    assert "votes.json" in str(caught.value)


def test_files_are_checked(study: Study, tmp_path: Path) -> None:
    twice = ballot(study.key, ann)
    twice["votes"][1]["trial"] = twice["votes"][0]["trial"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for path, message in (
        (write(tmp_path, "twice.json", twice), "on one trial twice"),
        (tmp_path / "binary.json", "is no JSON"),
        (tmp_path / "deep.json", "is no JSON"),
        (tmp_path / "nowhere.json", "no file"),
        (tmp_path / "empty", r"holds no \.json file"),
    ):
        with pytest.raises(ValueError, match=message):
            read(study.key, path)
    nothing = ballot(study.key, ann, votes=[])
    with pytest.raises(ValueError, match="got none on any pair"):
        tally(study.key, read(study.key, write(tmp_path, "none.json", nothing)).ballots)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "picture-study key", "version": 1}'])
def test_keys_are_checked(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="is no file"):
        Key.load(tmp_path / "key.json")
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(ValueError, match="is no key"):
        Key.load(tmp_path / "key.json")
