"""House rules that a reader relies on: imports go one way, nothing heavy on import, no state in modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ras_dit

SOURCE = Path(ras_dit.__file__).parent
ORDER = [
    "versions",
    "region",
    "config_checks",
    "config",
    "presets",
    "errors",
    "geometry",
    "plan",
    "forecast",
    "outputs",
    "importance",
    "selection",
    "kernels",
    "rows",
    "kv_forecast",
    "addresses",
    "cache",
    "attention",
    "routing",
    "seams",
    "inpainting",
    "controlnets",
    "cpu_layers",
    "trace",
    "calls",
    "chooser",
    "schedule",
    "observed",
    "remarks",
    "pipeline",
    "fitted",
    "state",
    "models",
    "why_dense",
    "flops",
    "gain",
    "blocks",
    "tokens",
    "by_image",
    "session",
    "summary",
    "quality",
    "viz",
    "files",
    "engine",
    "calibration",
    "dense_runs",
    "plan_search",
    "embedded",
    "arena",
    "tune",
    "study",
    "bench",
    "cli",
]


def modules() -> dict[str, ast.Module]:
    return {str(path.relative_to(SOURCE)): ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}


def layer(module: str) -> int:
    return ORDER.index(module.split(".")[0])


def imported(tree: ast.Module) -> list[str]:
    """Modules of the package that are imported when this one is (not inside functions or for type checking)."""
    names = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ras_dit"):
            inner = node.module.removeprefix("ras_dit").lstrip(".")
            names += [inner] if inner else [alias.name for alias in node.names if alias.name in ORDER]
    return names


def test_imports_go_one_way() -> None:
    for name, tree in modules().items():
        if name == "__init__.py":
            continue
        own = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for other in imported(tree):
            assert layer(other) <= layer(own), f"{own} imports {other}, which comes later"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import ras_dit", {"torch", "diffusers", "typer"}),
        ("import ras_dit.cli", {"torch", "diffusers", "transformers", "optuna"}),
        ("import ras_dit.study", {"torch", "diffusers", "typer", "rich", "matplotlib", "PIL"}),
        ("import ras_dit; ras_dit.enable", {"triton", "matplotlib", "gradio", "typer", "diffusers", "transformers"}),
    ],
)
def test_import_is_light_and_quiet(statement: str, heavy: set[str]) -> None:
    code = f"import sys; {statement}; print(sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    assert set(ras_dit.__all__) == {name for names in ras_dit._HOMES.values() for name in names}
    assert set(ras_dit.__all__) <= set(dir(ras_dit))
    with pytest.raises(AttributeError, match="no attribute 'enabel'"):
        ras_dit.enabel  # noqa: B018


def test_no_module_holds_state() -> None:
    """Module-level names are constants (upper case, or private), functions, classes and types."""
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name) and target.id not in ("app", "console", "__all__", "__version__"):
                        assert target.id.lstrip("_")[0].isupper(), f"{name}: {target.id}"
        assert not any(isinstance(node, ast.Global) for node in ast.walk(tree)), name


def test_files_are_short() -> None:
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path.name


def test_public_names_are_documented() -> None:
    for name in ras_dit.__all__:
        assert getattr(ras_dit, name).__doc__, name
