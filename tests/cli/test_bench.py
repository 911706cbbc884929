"""`ras-dit bench` on tiny twins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ras_dit.cache import KVCache

Run = Callable[..., tuple[int, str, str]]
TINY = ("bench", "--tiny", "--device", "cpu", "--steps", "8", "--repeats", "1", "--ratios", "0.5")


def test_figures_a_file_and_a_plot(ras_dit: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path, plot = tmp_path / "bench.json", tmp_path / "bench.png"
    words = (*TINY, "--case", "flux-dev", "--case", "wan-1.3b", "--sizes", "64,128", "-o", path, "--plot", plot)
    code, out, err = ras_dit(*words)
    assert code == 0, err
    assert "best dense loop" in out
    assert "ratio 0.5" in out
    assert "added by RAS" in out
    assert plot.stat().st_size > 10_000
    result = json.loads(path.read_text())
    assert set(result["cases"]) == {"flux-dev", "wan-1.3b"}
    assert [row["size"] for row in result["cases"]["wan-1.3b"]["crossover"]["eager"]["rows"]] == [
        *("64x64x9", "128x128x9")
    ]
    before = path.read_text()
    code, out, err = ras_dit(*words)
    assert code == 0, err
    assert path.read_text() == before
    assert "wan-1.3b: measured already" in err


def test_without_matplotlib_a_plot_is_refused_before_anything_is_measured(
    ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ras_dit.cli.plots.has_matplotlib", lambda: False)
    code, _, err = ras_dit(*TINY, "--case", "sd3-medium", "-o", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    assert code == 2
    assert "--plot: it needs matplotlib; `pip install" in err
    assert not list(tmp_path.iterdir())


def test_a_refused_figure_leaves_with_three(ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVCache, "merge", lambda cache, key, value: (cache.key * 0, cache.value))
    code, out, _ = ras_dit(*TINY, "--case", "sd3-medium", "-o", tmp_path / "bench.json")
    assert code == 3
    assert "sd3-medium, eager: no figures." in out


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
    found = json.loads(path.read_text())["cases"]["sd3-medium"]
    assert found["rows"] == []
    assert [row["size"] for row in found["crossover"]["eager"]["rows"]] == ["64x64", "128x128"]
    assert "128x128" in out
