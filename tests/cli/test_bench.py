"""`ras-dit bench` on tiny twins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ras_dit.cache import KVCache
from ras_dit.files import alone_with

Run = Callable[..., tuple[int, str, str]]
TINY = ("bench", "--tiny", "--device", "cpu", "--steps", "8", "--repeats", "1", "--ratios", "0.5")


def test_figures_a_file_and_a_plot(ras_dit: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    words = (*TINY, "--case", "flux-dev", "--case", "wan-1.3b", "--sizes", "64,128", "-o", path, "--plot", plot)
    code, out, err = ras_dit(*words)
    assert code == 0, err
    assert f"Wrote {path} and {plot}" in out
    assert "best dense loop" in out
    assert "ratio 0.5" in out
    assert "added by RAS" in out
    assert plot.stat().st_size > 10_000
    result = json.loads(path.read_text())
    assert set(result["cases"]) == {"flux-dev-tiny", "wan-1.3b-tiny"}
    assert [row["size"] for row in result["cases"]["wan-1.3b-tiny"]["crossover"]["eager"]["rows"]] == [
        *("64x64x9", "128x128x9")
    ]
    before = path.read_text()
    code, out, err = ras_dit(*words)
    assert code == 0, err
    assert path.read_text() == before
    assert "wan-1.3b-tiny: measured already" in err
    assert f"Wrote {plot}" in out


def test_without_matplotlib_a_plot_is_refused_before_anything_is_measured(
    ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ras_dit.cli.plots.has_matplotlib", lambda: False)
    code, _, err = ras_dit(*TINY, "--case", "sd3-medium", "-o", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    assert code == 2
    assert "--plot: it needs matplotlib; `pip install" in err
    assert not list(tmp_path.iterdir())


def test_a_refused_figure_leaves_with_three(ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bench.json"
    with monkeypatch.context() as patched:
        patched.setattr(KVCache, "merge", lambda cache, key, value: (cache.key * 0, cache.value))
        code, out, _ = ras_dit(*TINY, "--case", "sd3-medium", "-o", path)
    assert code == 3
    assert "sd3-medium-tiny, eager: no figures." in out
    code, out, err = ras_dit(*TINY, "--case", "sd3-medium", "-o", path)
    assert code == 3
    assert "sd3-medium-tiny, eager: refused before, by the same code with the same options. RefusedError: " in err
    assert "sd3-medium-tiny, eager: no figures." in out
    assert "Wrote" not in out
    code, _, _ = ras_dit(*TINY, "--case", "flux-dev", "-o", path)
    assert code == 0, "what was refused was not asked for"


def test_two_at_once_on_one_file_are_refused(ras_dit: Run, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    with alone_with("--output", path, "benchmark"):
        code, _, err = ras_dit(*TINY, "--case", "sd3-medium", "-o", path)
    assert code == 2
    assert "where another benchmark is under way; wait for it, or give another file." in " ".join(err.split())
    assert not path.exists()


def test_what_is_left_out_writes_nothing(ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("ras_dit.bench.cases.free_bytes", lambda device: 1000)
    path, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    code, out, err = ras_dit(*TINY, "--case", "sd3-medium", "-o", path, "--plot", plot)
    assert code == 0
    assert "left out" in err
    assert f"--plot: there are no figures, and so no {plot}." in err
    assert "Wrote" not in out
    assert not path.exists()
    assert not plot.exists()


def test_an_interrupt_leaves_with_130(ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ras_dit.bench.run.overhead", interrupt)
    code, _, err = ras_dit(*TINY, "--case", "sd3-medium", "-o", tmp_path / "bench.json")
    assert code == 130
    assert "interrupted" in err


def test_the_cases_are_listed(ras_dit: Run) -> None:
    code, out, _ = ras_dit("bench", "--list")
    assert code == 0
    assert "flux-dev: FLUX.1 dev's dimensions" in out
    assert "distilled guidance, one row" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--case", "sd4"), "--case: got 'sd4'; allowed: embedded"),
        (("--ratios", "2"), "--ratios: got '2'; allowed"),
        (("--ratios", "half"), "--ratios: got 'half'; allowed"),
        (("--repeats", "0"), "--repeats: got 0; allowed: at least 1"),
        (("--no-eager",), "--no-eager: got no mode at all"),
        (("--dtype", "float16"), "--dtype: got it with --tiny"),
        (("--size", "512"), "--size: got it with --tiny"),
        (("--depth", "0.1"), "--depth: got it with --tiny"),
        (("--sizes", "1x2x3x4"), "--sizes: got '1x2x3x4'"),
        (("--case", "embedded", "--no-loops"), "--no-loops: got it for embedded, but the model in the box is timed"),
        (("--case", "embedded", "--sizes", "512"), "--sizes: got it for embedded, but the model in the box is timed"),
        (("--case", "sd3-medium-2048", "--crossover"), "but it has no picture sizes of its own; give --sizes"),
    ],
)
def test_mistakes_are_one_line(ras_dit: Run, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    code, _, err = ras_dit("bench", "--tiny", "--device", "cpu", "-o", tmp_path / "bench.json", *words)
    assert code == 2
    assert message in " ".join(err.split())


def test_picture_sizes_alone(ras_dit: Run, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    code, out, _ = ras_dit(*TINY, "--case", "sd3-medium", "--no-loops", "--sizes", "64,128", "-o", path)
    assert code == 0, out
    found = json.loads(path.read_text())["cases"]["sd3-medium-tiny"]
    assert found["rows"] == []
    assert [row["size"] for row in found["crossover"]["eager"]["rows"]] == ["64x64", "128x128"]
    assert "128x128" in out
