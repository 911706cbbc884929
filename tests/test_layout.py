"""House rules that a reader relies on: imports go one way, nothing heavy on import, no state in modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ras_dit

SOURCE = Path(ras_dit.__file__).parent
ORDER = [
    "versions",
    "machine",
    "files",
    "region",
    "config_checks",
    "config",
    "presets",
    "errors",
    "geometry",
    "step_ratios",
    "plan",
    "forecast",
    "outputs",
    "importance",
    "selection",
    "kernels",
    "rows",
    "kv_forecast",
    "addresses",
    "kv_storage",
    "cache",
    "attention",
    "routing",
    "seams",
    "inpainting",
    "pipeline",
    "controlnets",
    "cpu_layers",
    "trace",
    "clocks",
    "latest",
    "calls",
    "chooser",
    "schedule",
    "observed",
    "fitted",
    "filling",
    "state",
    "models",
    "why_dense",
    "flops",
    "gain",
    "remarks",
    "blocks",
    "tokens",
    "attached",
    "by_image",
    "session",
    "summary",
    "quality",
    "viz",
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
UPWARDS = {("config", "presets"), ("trace", "viz")}
"""Modules that import a later one inside functions, on purpose: methods that give a preset, and that draw."""


def modules() -> dict[str, ast.Module]:
    """The modules of the package by their dotted names, packages by theirs."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def layer(module: str) -> int:
    return ORDER.index(top(module))


def top(module: str) -> str:
    """The package that a module is in, or its own name."""
    return module.partition(".")[0]


def nodes_of(node: ast.AST, enters_functions: bool) -> Iterator[ast.AST]:
    """Everything in a module but what is there for type checking alone."""
    yield node
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        children = node.orelse
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not enters_functions:
        children = ()
    for child in children:
        yield from nodes_of(child, enters_functions)


def imported(tree: ast.Module, known: Collection[str], enters_functions: bool = True) -> set[str]:
    """Which known modules of the package are imported by one, whenever that is, or as soon as it is itself."""
    named = set()
    for node in nodes_of(tree, enters_functions):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            named |= {name if name.removeprefix("ras_dit.") in known else str(node.module) for name in whole}
    return {name.removeprefix("ras_dit.") for name in named if name.startswith("ras_dit.")} & set(known)


def test_imports_go_one_way() -> None:
    trees = modules()
    upwards = set()
    for own, tree in trees.items():
        if own == "__init__":
            continue
        for other in imported(tree, trees, enters_functions=False):
            assert layer(other) <= layer(own), f"{own} imports {other}, which comes later"
        upwards |= {(own, other) for other in imported(tree, trees) if layer(other) > layer(own)}
    assert upwards == UPWARDS, "imports of later modules, inside functions"


def test_packages_have_no_cycles() -> None:
    """Of imports inside functions and others: what a package is made of can be read from the bottom up."""
    trees = modules()
    graph = {
        own: {other for other in imported(tree, trees) if top(other) == top(own)}
        for own, tree in trees.items()
        if own != "__init__"
    }
    assert {"cli", "arena", "bench", "tune", "study", "models", "kernels"} <= graph.keys()
    assert "cli.options" in graph["cli.generate"], "imports are seen"
    TopologicalSorter(graph).prepare()  # raises an error that names the modules of a cycle


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
