"""`ras-dit study`: from pictures to a report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ras_dit.cli import study as commands
from ras_dit.study import Key
from study.conftest import ballot, colour, film, paint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ras", "dense"):
        for index in range(4):
            paint(tmp_path / name / f"{index}.png", colour(name, index), {"prompt": f"fox {index}"})
    return tmp_path


def answers(pair: int, kind: str) -> str:
    return "tie" if kind == "catch" else ("win", "win", "tie", "loss")[pair]


def test_from_pictures_to_a_report(ras_dit: Run, folder: Path) -> None:
    output = folder / "study"
    code, out, err = ras_dit("study", "build", folder, "-o", output, "--num-repeats", 1, "--num-catches", 1)
    assert (code, err.strip()) == (0, "")
    assert "4 pairs on 6 screens; give it to voters" in out
    assert "keep it to yourself" in out
    key = Key.load(output / "key.json")
    (output / "votes").mkdir()
    for voter, name in enumerate(("Ann", "[bold]Ben")):
        values = ballot(key, answers, name, voter)
        (output / "votes" / f"{voter}.json").write_text(json.dumps(values))
    numbers, plot = folder / "report.json", folder / "report.png"
    call = ("study", "report", "--key", output / "key.json", "--pairs", "--json", numbers, "--plot", plot)
    code, out, err = ras_dit(*call)
    assert (code, err) == (0, "")
    for text in (
        "ras is better (win)",
        "8 votes of 2 voter(s) on 4 pair(s)",
        "50.0%",
        "21.5% to 78.5%",  # Wilson, 4 of 8
        "Of the 6 decided votes 66.7%",
        "sign test p = 0.688",  # 2 (1 + 6 + 15) / 64
        "Each pair by its majority: 2 win, 1 tie, 1 loss",
        "Each voter by theirs: 2 win, 0 tie, 0 loss",
        "Repeats: 2 of 2 answered alike, 0 reversed",
        "Catches: 2 of 2 called about equal",
        "[bold]Ben",
        "fox 3",
    ):
        assert text in out, text
    record = json.loads(numbers.read_text())
    assert record["study"] == key.study
    assert record["votes"]["win"]["count"] == 4
    with Image.open(plot) as image:
        assert image.format == "PNG"
    single = ras_dit("study", "report", output / "votes" / "0.json", "--key", output / "key.json")
    assert "4 votes of 1 voter(s)" in single[1]


def test_options_of_build(ras_dit: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = folder / "prompts.txt"
    prompts.write_text("fox one\nfox two\nfox three\nfox four\n")
    monkeypatch.setattr(commands, "LARGE_PAGE", 1000)
    words = (
        "study",
        "build",
        folder,
        "-o",
        folder / "study",
        "--prompts-file",
        prompts,
        "--question",
        "Which is nicer?",
    )
    code, _, err = ras_dit(*words, "--num-pairs", 3, "--max-side", 16, "--seed", 5)
    assert code == 0
    assert err.strip().startswith("ras-dit: note: the page has 0 MB, much for a phone")
    key = Key.load(folder / "study" / "key.json")
    assert (key.question, key.seed, len(key.pairs)) == ("Which is nicer?", 5, 3)
    assert {pair.prompt for pair in key.pairs} < {"fox one", "fox two", "fox three", "fox four"}
    code, _, err = ras_dit(*words, "--seed", 6)
    assert code == 2
    assert "holds another study" in err
    assert ras_dit(*words, "--seed", 6, "--hide-prompts", "--overwrite")[0] == 0
    assert "fox three" not in (folder / "study" / "study.html").read_text()


def test_the_report_works_after_a_study_took_the_place_of_another(ras_dit: Run, folder: Path) -> None:
    output = folder / "study"
    build = ("study", "build", folder, "-o", output, "--overwrite")
    report = ("study", "report", "--key", output / "key.json")
    votes = {}
    for seed, name in ((1, "Ann"), (2, "Ben")):
        code, out, err = ras_dit(*build, "--seed", seed)
        assert code == 0, err
        key = Key.load(output / "key.json")
        votes[name] = json.dumps(ballot(key, answers, name))
        (output / "votes").mkdir()
        (output / "votes" / "1.json").write_text(votes[name])
        if name == "Ann":
            aside = (output / f"votes-{key.study}", output / f"key-{key.study}.json")
    assert f"Of the study that was there: {aside[0]} and {aside[1]}." in out
    for words, name in ((report, "Ben"), (("study", "report", aside[0], "--key", aside[1]), "Ann")):
        code, out, err = ras_dit(*words)
        assert code == 0, err
        assert "4 votes of 1 voter(s)" in out
        assert name in out
    (output / "votes" / "late.json").write_text(votes["Ann"])
    code, _, err = ras_dit(*report)
    assert code == 2
    assert "late.json: holds votes of study" in err
    assert "Read it with the key of its own study, or move it away." in err


def test_videos_are_asked_about_as_such(ras_dit: Run, tmp_path: Path) -> None:
    for name in ("ras", "dense"):
        film(tmp_path / name / "0.png", colour(name, 0), duration=62)
    words = ("study", "build", tmp_path, "-o", tmp_path / "study")
    code, out, err = ras_dit(*words, "--max-side", 16)
    assert (code, err.strip()) == (0, "")
    assert "1 pairs on 1 screens" in out
    key = Key.load(tmp_path / "study" / "key.json")
    assert key.question == "Which video is better?"
    (tmp_path / "votes.json").write_text(json.dumps(ballot(key, lambda *_: "win")))
    code, out, _ = ras_dit("study", "report", tmp_path / "votes.json", "--key", tmp_path / "study" / "key.json")
    assert code == 0
    assert "Which video is better?" in out
    film(tmp_path / "ras" / "0.png", 0, duration=63)
    code, _, err = ras_dit(*words, "--overwrite")
    assert code == 2
    assert "0.png lasts 63 ms" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("build", "{folder}", "--ours", "fast"), "got 'fast', which is no folder"),
        (("build", "{folder}", "--num-pairs", "9"), "num_pairs: got 9"),
        (("build", "{folder}", "--question", ""), "question"),
        (("build", "{folder}", "--prompts-file", "no.txt"), "no.txt"),
        (("build",), "folder"),
        (("report",), "key.json"),
        (("report", "--plot", "a.jpg"), "--plot: got 'a.jpg'"),
        (("serve",), "build a study first"),
        (("serve", "--port", "70000"), "--port"),
        (("count",), "count"),
    ],
)
def test_one_line(
    ras_dit: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, out, err = ras_dit("study", *(word.format(folder=folder) for word in words))
    assert (code, out) == (2, "")
    assert message in err
    assert err.strip().startswith("ras-dit: error: ")
    assert err.strip().count("\n") == 0
    assert not list(Path().iterdir())


def test_report_without_matplotlib(ras_dit: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ras_dit("study", "build", folder, "-o", folder / "study")
    votes = folder / "votes.json"
    votes.write_text(json.dumps(ballot(Key.load(folder / "study" / "key.json"), answers)))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ("study", "report", votes, "--key", folder / "study" / "key.json")
    assert ras_dit(*words)[0] == 0
    code, out, err = ras_dit(*words, "--plot", folder / "plot.png")
    assert (code, out) == (2, "")
    assert "pip install '.[arena]'" in err
    assert not (folder / "plot.png").exists()


def test_serve_ends_with_ctrl_c(ras_dit: Run, folder: Path) -> None:
    ras_dit("study", "build", folder, "-o", folder / "study")
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from ras_dit.cli import main; sys.exit(main())",
            *("study", "serve", str(folder / "study"), "--port", "0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    url = process.stdout.readline().removeprefix("Voters go to ").strip()
    assert url.startswith("http://127.0.0.1:")
    values = ballot(Key.load(folder / "study" / "key.json"), answers, "Ann")
    request = urllib.request.Request(url + "votes", json.dumps(values).encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        assert answer.status == 204
    code, _, err = ras_dit("study", "serve", folder / "study", "--port", url.strip("/").rsplit(":", 1)[1])
    assert code == 2
    assert "try --port 0" in err
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "Ann: 4 of 4 votes" in out
    assert out.endswith("Stopped.\n")
    code, out, _ = ras_dit("study", "report", "--key", folder / "study" / "key.json")
    assert code == 0
    assert "Ann" in out
