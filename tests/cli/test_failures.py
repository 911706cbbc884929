"""Mistakes get one line and exit code 2; Ctrl-C leaves whole files only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ras_dit.cli import main
from ras_dit.files import save_png

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("generate",), "no prompt"),
        (("generate", "a", "--sample-ratio", "2"), "(0, 1]"),
        (("generate", "a", "--sample-ratio", "half"), "--sample-ratio: got 'half'"),
        (("generate", "a", "--forecast-midpoint", "perhaps"), "True or False"),
        (("generate", "a", "--preset", "balenced"), "Did you mean 'balanced'?"),
        (("generate", "a", "--config", "nowhere.yaml"), "nowhere.yaml"),
        (("generate", "a", "--dense", "--trace"), "--trace"),
        (("generate", "a", "--num-images", "0"), "--num-images"),
        (("generate", "a", "--steps", "0"), "steps"),
        (("generate", "a", "--steps", "many"), "--steps"),
        (("generate", "a", "--no-such-flag"), "--no-such-flag"),
        (("generate", "a", "--model", "no/such/folder"), "no/such/folder"),
        (("compare",), "prompt"),
        (("compare", "a", "--output", "picture.jpg"), ".png"),
        (("compare", "a", "--repeats", "0"), "--repeats"),
        (("demo", "--preset", "slow"), "slow"),
        (("plan", "--model", "."), "model_index.json"),
        (("arena", "--suites", "fast"), "suite: got 'fast'; allowed: all, dense"),
        (("arena", "--pictures", "0"), "--pictures: got 0"),
        (("arena", "--model", "somebody/model"), "--prompts-file: got none"),
        (("calibrate", "--output", "fitted.txt"), "--output: got 'fitted.txt'"),
        (("calibrate", "--pictures", "0"), "--pictures: got 0"),
        (("calibrate", "--sample-ratio", "1"), "there is nothing to fit"),
        (("calibrate", "--model", "somebody/model"), "--prompts-file: got none"),
        (("paint",), "paint"),
    ],
)
def test_one_line(ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ras_dit(*words)
    assert code == 2
    assert message in err
    assert err.startswith("ras-dit: error: ")
    assert err.count("\n") == 1
    assert not out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dtype", "int8"), "--dtype"),
        (("--device", "toaster"), "--device"),
        (("--height", "33"), "height"),
        (("--refresh-steps", "99"), "refresh_steps: got 99"),
    ],
)
def test_mistakes_that_the_model_shows(ras_dit: Run, model: str, tmp_path: Path, flags: tuple, message: str) -> None:
    code, _, err = ras_dit("generate", "a", "-m", model, "--steps", 6, "-o", tmp_path, *flags)
    assert code == 2
    assert message in err
    assert err.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="no prompt"):
        main(["generate", "--debug"])


def test_notes_of_the_library_are_shown(ras_dit: Run, model: str, tmp_path: Path) -> None:
    code, _, err = ras_dit("generate", "a", "-m", model, "--steps", 4, "--warmup-steps", 4, "-o", tmp_path)
    assert code == 0
    assert "ras-dit: note: The run has 4 evaluations, all of them dense" in err


def test_png_is_whole_or_absent(tmp_path: Path) -> None:
    class Broken(Image.Image):
        def save(self, target: Path, **_: object) -> None:
            Path(target).write_bytes(b"half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_png(Broken(), tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_interrupt(model: str, tmp_path: Path) -> None:
    words = ["generate", "a", "b", "c", "-m", model, "--steps", "300", "-o", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from ras_dit.cli import main; sys.exit(main())", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert "Wrote" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1].startswith("ras-dit: interrupted")
    assert "Traceback" not in err
    files = list(tmp_path.iterdir())
    assert 1 <= len(files) < 3
    for path in files:
        Image.open(path).load()


def test_mistake_in_a_process() -> None:
    words = [sys.executable, "-c", "import sys; from ras_dit.cli import main; sys.exit(main())", "generate"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "ras-dit: error: generate: got no prompt; give one or more, or --prompts-file.\n"
