"""Mistakes get one line and exit code 2; Ctrl-C leaves whole files only."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from ras_dit.cli import main
from ras_dit.cli.pipelines import resolve_device
from ras_dit.cli.places import check_file, check_folder
from ras_dit.config import RASConfig
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
        (("plan", "--steps", "0"), "--steps: got 0"),
        (("plan", "--max-sequence-length", "-5"), "--max-sequence-length: got -5"),
        (("plan", "--max-sequence-length", "0"), "--max-sequence-length: got 0"),
        (("plan", "--height", "0"), "height: got 0"),
        (("plan", "--frames", "-1"), "num_frames: got -1"),
        (("arena", "--suites", "fast"), "suite: got 'fast'; allowed: all, dense"),
        (("arena", "--pictures", "0"), "--pictures: got 0"),
        (("arena", "--model", "somebody/model"), "--prompts-file: got none"),
        (("calibrate", "--output", "fitted.txt"), "--output: got 'fitted.txt'"),
        (("calibrate", "--pictures", "0"), "--pictures: got 0"),
        (("calibrate", "--sample-ratio", "1"), "there is nothing to fit"),
        (("calibrate", "--cost", "1.2"), "cost: got 1.2; allowed: a share of the dense run's FLOPs"),
        (("calibrate", "--model", "somebody/model"), "--prompts-file: got none"),
        (("generate", "a", "--height", "-64"), "height: got -64; allowed: a number of pixels"),
        (("generate", "a", "--width", "0"), "width: got 0"),
        (("generate", "a", "--strength", "1.5"), "strength: got 1.5; allowed: above 0, at most 1."),
        (("compare", "a", "--strength", "nan"), "strength: got nan"),
        (("generate", "a", "--guidance", "nan"), "guidance: got nan; allowed: a finite number"),
        (("compare", "a", "--height", "0"), "height: got 0"),
        (("arena", "--width", "-1"), "width: got -1"),
        (("calibrate", "--guidance", "inf"), "guidance: got inf"),
        (("calibrate", "--frames", "0"), "--frames: got 0"),
        (("calibrate", "--seed", 2**63 - 2), f"seed: got {2**63 + 5}; allowed: an int of 64 bits."),
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


@pytest.mark.parametrize("command", ["compare", "demo", "arena", "tune", "calibrate"])
def test_a_step_outside_the_run_is_known_before_anything_is_painted_or_written(
    ras_dit: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    config = RASConfig(refresh_steps=(99,))
    config.save(tmp_path / "config.json")
    monkeypatch.setattr(StableDiffusion3Pipeline, "check_inputs", lambda *_, **__: pytest.fail("was called"))
    if command == "demo":
        monkeypatch.setattr(RASConfig, "preset", lambda _: config)
    (tmp_path / "prompts.txt").write_text("a fox\nan owl\na cat\na dog\n")
    words: dict[str, tuple[object, ...]] = {"compare": ("a fox",), "demo": ()}
    called = words.get(command, ("--prompts-file", tmp_path / "prompts.txt"))
    if command == "tune":
        pytest.importorskip("optuna")
        called = (*called, "--min-psnr", 30, "--calibration", 2, "--validation", 2)
    given = () if command == "demo" else ("--config", tmp_path / "config.json")
    where = tmp_path / "out" / {"calibrate": "x.json"}.get(command, "x.png")
    code, _, err = ras_dit(command, *called, *given, "-m", model, "--steps", 8, "-o", where)
    assert code == 2
    whose = "config config: " if command == "arena" else ""
    assert err.startswith(f"ras-dit: error: {whose}refresh_steps: got 99, but this run has 8 transformer evaluations")
    assert not (tmp_path / "out").exists()


def test_a_bad_size_is_no_methods_mistake(ras_dit: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\n")
    words = ("--prompts-file", tmp_path / "prompts.txt", "-m", model, "--steps", 8, "-o", tmp_path / "out")
    code, _, err = ras_dit("arena", *words, "--height", 33)
    assert code == 2
    assert err.startswith("ras-dit: error: height: got 33; allowed: multiples of 4 pixels")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["arena", "tune", "calibrate"])
def test_seeds_that_are_too_large(ras_dit: Run, tmp_path: Path, command: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a fox"}\n' + f'{{"prompt": "an owl", "seed": {2**63}}}\n')
    call = ("--min-psnr", 30) if command == "tune" else ()
    code, _, err = ras_dit(command, "-m", "a/model", "--prompts-file", path, "-o", tmp_path / "out.json", *call)
    assert code == 2
    assert f"--prompts-file: {path}, line 2: seed: got {2**63}; allowed: an int of 64 bits." in err


@pytest.mark.parametrize("command", ["arena", "tune", "calibrate"])
def test_keys_of_prompts_that_a_command_does_not_use(ras_dit: Run, tmp_path: Path, command: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a fox", "seed": 3, "steps": 9, "guidance": 2}\n')
    call = ("--min-psnr", 30) if command == "tune" else ()
    code, _, err = ras_dit(command, "-m", "a/model", "--prompts-file", path, "-o", tmp_path / "out.json", *call)
    assert code == 2
    assert "line 1: got guidance, steps; allowed (in this command): prompt, seed." in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("generate", "a", "-o", "afile"), "--output-dir: got 'afile', which is a file; give a folder."),
        (("generate", "a", "-o", "afile/in/it"), "--output-dir: got 'afile/in/it', but "),
        (("compare", "a", "-o", "afile/x.png"), "afile' is a file; give another place."),
        (("compare", "a", "--json", "folder"), "--json: got 'folder', which is a folder; give the name of a file."),
        (("demo", "-o", "afile.png"), "--output: got 'afile', which is a file"),
        (("calibrate", "-o", "afile/x.json"), "--output: got 'afile/x.json', but "),
        (("arena", "-o", "afile"), "--output: got 'afile', which is a file"),
        (("tune", "--min-psnr", "30", "-o", "afile"), "--output: got 'afile', which is a file"),
        (("bench", "-o", "folder"), "--output: got 'folder', which is a folder"),
        (("bench", "--plot", "afile/x.png"), "--plot: got 'afile/x.png', but "),
        (("bench", "--plot", "x.jpgx"), "--plot: got 'x.jpgx'; allowed: a name ending in .png."),
        (("study", "build", "folder", "-o", "afile"), "--output: got 'afile', which is a file"),
        (("study", "report", "--json", "afile/x.json"), "--json: got 'afile/x.json', but "),
    ],
)
def test_bad_places_are_known_before_anything_is_loaded(
    ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ras_dit.cli.pipelines.load_pipeline", lambda *_, **__: pytest.fail("was loaded"))
    monkeypatch.setattr("ras_dit.bench.Benchmark", lambda *_: pytest.fail("was run"))
    (tmp_path / "afile").touch()
    (tmp_path / "folder").mkdir()
    code, _, err = ras_dit(*words)
    assert code == 2
    assert message in err
    assert {path.name for path in tmp_path.iterdir()} == {"afile", "folder"}


def test_places_that_cannot_be_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match=r"--output: got .*, which cannot be written into; give another place\."):
        check_folder("--output", tmp_path)
    with pytest.raises(ValueError, match=f"--output: got .*, but '{tmp_path}' cannot be written into"):
        check_file("--output", tmp_path / "new" / "x.png", ".png")
    with pytest.raises(ValueError, match=re.escape("allowed: a name ending in .json, .yaml or .yml.")):
        check_file("--output", tmp_path / "x.png", ".json", ".yaml", ".yml")


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "cuda", "cuda:99"])
def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    for kind in ("backends.mps", "xpu", "cuda"):
        monkeypatch.setattr(f"torch.{kind}.is_available", lambda: "99" in device)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match=f"--device: got '{device}', but PyTorch sees no such device here"):
        resolve_device(device)


@pytest.mark.parametrize("words", [(), ("--debug",), ("study",), ("study", "--debug")])
def test_no_command_prints_the_help(ras_dit: Run, words: tuple[str, ...]) -> None:
    code, out, err = ras_dit(*words)
    assert (code, err) == (0, "")
    assert "Usage: ras-dit" in out
    assert ("report" if "study" in words else "calibrate") in out
    assert ("Exit codes: 0 " in out) is ("study" not in words)


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


@pytest.mark.parametrize(
    ("error", "is_cpu"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines."), False),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB)."), False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate."), True),
    ],
)
def test_memory_that_ran_out_is_one_line_with_a_way_out(
    ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, is_cpu: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ras_dit.cli.pipelines.load_pipeline", fail)
    code, _, err = ras_dit("generate", "a", "-o", tmp_path)
    assert code == 2
    assert err.startswith("ras-dit: error: out of memory: ")
    assert "--kv-cache" not in err, "arena, tune and demo have no such flags"
    assert "the config's kv_cache_dtype 'float8_e4m3fn' halves them" in err
    assert "--dtype bfloat16" in err
    for moves in ("kv_cache_device", "--offload model", "--offload sequential"):
        assert (moves in err) is not is_cpu, "beside the CPU's memory there is none to move to"
    assert err.count("\n") == 1
    monkeypatch.setattr("ras_dit.cli.pipelines.load_pipeline", lambda *_, **__: {}["a bug"])
    with pytest.raises(KeyError):
        ras_dit("generate", "a", "-o", tmp_path)
