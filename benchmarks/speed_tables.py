"""Tables of speed: from every ``benchmarks/results/speed_*.json`` whose run was checked in the same process (see
`ras_dit.bench.results`). Results of before that are in no table.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks import record
from ras_dit.bench import CASES
from ras_dit.bench.architectures import Size
from ras_dit.bench.profiling import ADDED
from ras_dit.bench.report import gain_text, plot
from ras_dit.bench.results import compare

MIB = 2.0**20

NOTE = (
    "T is the number of token-steps, the unit of equal compute: a dense step counts 1, a region step its share of "
    "tokens. `ratio` rows use the paper's schedule (of 28 steps, 0-3, 12 and 20 dense). Whole denoising loop, text "
    "encoding included, without the VAE. Small pictures are held back by the fixed cost of every operation. "
    "Shares are good to a few per cent, as loops repeat: those above 100 %, too."
)
FORMER_NOTE = " *former plan*: the preset computed other steps when this was timed; another table has today's."


def checked_results() -> dict[str, dict[str, Any]]:
    """All speed results by their names, of each what the checks of the same process were green for; speed-ups are over
    the best dense loop, and the best dense step of a size, of all modes."""
    found = {name: _checked(result) for name, result in record.read_all("speed_*").items()}
    return {name: result for name, result in found.items() if result["rows"] or result["crossover"]}


def _checked(result: dict[str, Any]) -> dict[str, Any]:
    checks, sizes = result.get("checks", {}), {}
    for mode, found in result.get("crossover", {}).items():
        rows = [row for row in found["rows"] if _is_green(row.get("checks"))]
        sizes |= {mode: {**found, "rows": rows}} if rows else {}
    rows = [row for row in result["rows"] if isinstance(checks, dict) and _is_green(checks.get(row.get("mode")))]
    kept = {**result, "rows": rows, "crossover": sizes}
    compare(kept)
    return kept


def _is_green(checks: list[dict[str, Any]] | None) -> bool:
    """Whether there are any, and all of them are."""
    return bool(checks) and all(check["is_green"] for check in checks or ())


def speed_results() -> Iterator[dict[str, Any]]:
    """Results of whole loops."""
    return (result for result in checked_results().values() if result["rows"])


def limits_table() -> str:
    """What the FLOPs allow and the cache takes, for every case with dimensions of its own; nothing is measured."""
    lines = ["| model | setting | T | limit by FLOPs | K/V cache |", "| --- | --- | --- | --- | --- |"]
    for case in CASES.values():
        if case.dimensions is None:
            continue
        pipe = case.outline()
        for name, config in case.configs(case.schedule.num_steps).items():
            if config.sample_ratio == 1:
                continue
            plan = case.plan(config, pipe)
            of = f"{case.title}, {case.schedule.num_steps} steps"
            gib = case.num_rows * plan.cost.kv_cache_bytes / 2**30 if plan.cost else 0.0
            cache = f"{gib:.1f} GiB" if gib else "none"
            lines.append(f"| {of} | {name} | {plan.token_steps:.2f} | {plan.speedup_limit:.2f}x | {cache} |")
    return "\n".join([*lines, ""])


def modes_of(result: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["mode"] for row in result["rows"]))


def rows_of(result: dict[str, Any], mode: str) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["mode"] == mode]


def heading(result: dict[str, Any], has_size: bool = True) -> str:
    title = result["title"]
    if not has_size:
        title = title.replace(f", {Size.parse(result['size'], Size(1, 1)).described}", "")
    return f"**{title[0].upper()}{title[1:]}**"


def speed_table() -> str:
    """Speed-ups beside their limits."""
    results = list(speed_results())
    lines: list[str] = []
    for result in results:
        lines += [*_speed_lines(result), ""]
    return "\n".join([*lines, NOTE + (FORMER_NOTE if any(map(_is_former, results)) else "")])


def _title(result: dict[str, Any]) -> str:
    """The case's title as it is now: results of one case have one, whenever they were measured."""
    found = CASES.get(result["case"])
    return result["title"] if found is None else found.title


def speed_digest() -> str:
    """Settings by models: speed-up and limit, of the results with today's plans, in the best mode of each."""
    results = at_their_best([result for result in speed_results() if not _is_former(result)])
    modes = [result["dense_best"]["mode"] for result in results]
    found = [
        {row["name"]: row for row in rows_of(result, mode)[1:]} for result, mode in zip(results, modes, strict=True)
    ]
    heads = [_head(result, mode) for result, mode in zip(results, modes, strict=True)]
    lines = ["| setting | " + " | ".join(heads) + " |", "| --- " * (1 + len(heads)) + "|"]
    names = dict.fromkeys(name for rows in found for name in rows if name != "ratio 1")
    for name in sorted(names, key=lambda name: name.startswith("ratio")):  # presets first
        cells = [_digest_cell(rows[name]) if name in rows else "" for rows in found]
        lines.append(f"| {name if name.startswith('ratio') else f'`{name}`'} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def at_their_best(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the results of one case on one kind of machine the one with the fastest dense loop: no other is a baseline."""
    best: dict[tuple[str, str], float] = {}
    for result in results:
        of = (result["case"], record.machine(result))
        best[of] = min(best.get(of, math.inf), _dense_seconds(result))
    return [one for one in results if _dense_seconds(one) == best[one["case"], record.machine(one)]]


def _dense_seconds(result: dict[str, Any]) -> float:
    return float(result["dense_best"]["median"])


def _head(result: dict[str, Any], mode: str) -> str:
    """Of a column: what was timed, on what, how long a dense loop took there, and what the best one is the best of."""
    which = _named(mode, ", {}")
    tried = f", the best of {', '.join(modes_of(result))}" if len(modes_of(result)) > 1 else f", {mode} alone"
    machine = record.machine(result).replace("(R)", "").replace(" Processor", "").removesuffix(", 2 threads")
    return f"{_title(result)}{which}<br>{machine}<br>dense {_dense_seconds(result):.0f} s{tried}"


def _digest_cell(row: dict[str, Any]) -> str:
    return f"**{row['speedup']:.2f}x** of {row['limit']:.2f}x"


def _is_former(result: dict[str, Any]) -> bool:
    return any(row["name"].endswith(record.FORMER) for row in result["rows"])


def _speed_lines(result: dict[str, Any]) -> list[str]:
    modes, dense = modes_of(result), result["rows"][0]
    has_modes = len(modes) > 1
    best = result["dense_best"]
    which = f" ({best['mode']}, the best of {', '.join(modes)})" if has_modes else _named(modes[0], " ({})")
    guidance = "with distilled guidance" if result.get("guidance", "").startswith("distilled") else "with guidance"
    head, rule = ("| mode | setting |", "| --- | --- |") if has_modes else ("| setting |", "| --- |")
    last, last_rule = (" over dense of its own mode |", " --- |") if has_modes else ("", "")
    lines = [
        f"{heading(result)}, {dense['steps']} steps {guidance}; dense {best['median']:.2f} s{which}. "
        f"({record.origin(result)}; median of interleaved runs.)",
        "",
        f"{head} T | time | speed-up | limit by FLOPs | share of the limit | region step / dense step |{last}",
        f"{rule} --- | --- | --- | --- | --- | --- |{last_rule}",
    ]
    for mode in modes:
        rows = rows_of(result, mode)
        shown = rows if has_modes else rows[1:]
        lines += [f"| {mode} {_speed_row(row)}{_own_mode(row)}" if has_modes else _speed_row(row) for row in shown]
    return lines


def _named(mode: str, text: str) -> str:
    """The only mode of a result, where it is not the eager one."""
    return "" if mode == "eager" else text.format(mode)


def _own_mode(row: dict[str, Any]) -> str:
    """The last cell of a result with several modes: speed-up and share of the limit within one of them."""
    if "limit" not in row:
        return "  |"
    within = row["speedup_same_mode"]
    return f" {within:.2f}x, {within / row['limit']:.0%} |"


def _speed_row(row: dict[str, Any]) -> str:
    if "limit" not in row:
        return f"| {row['name']} |  | {row['median']:.2f} s | {row['speedup']:.2f}x |  |  |  |"
    step = f"{row['region_step'] / row['dense_step']:.3f}" if row["region_step"] and row["dense_step"] else ""
    return (
        f"| {row['name']} | {row['token_steps']:.2f} | {row['median']:.2f} s | **{row['speedup']:.2f}x** | "
        f"{row['limit']:.2f}x | {row['share_of_limit']:.0%} | {step} |"
    )


def profile_table() -> str:
    """Where the time of one transformer call goes, dense and in the leanest region step, against the FLOP share."""
    lines: list[str] = []
    for result in speed_results():
        for mode in modes_of(result):
            found = [row for row in rows_of(result, mode) if "profile" in row]
            if len(found) == 2:
                which = f", {mode}" if len(modes_of(result)) > 1 else _named(mode, ", {}")
                lines += _profile_lines(result, f"{heading(result)}{which}", *found)
    for result, mode, row in largest_sizes():
        region = min(row["ratios"], key=lambda one: one["ratio"])
        named = {**region, "name": f"ratio {region['ratio']:g}", "num_tokens": row["num_tokens"]}
        lines += _profile_lines(result, f"{heading(result, has_size=False)}, {row['size']}, {mode}", row, named)
    return "\n".join([*lines, ""])


def largest_sizes() -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    """Result, mode and row of the largest picture size of every case that has no whole loops with a profile in that
    mode."""
    for result in checked_results().values():
        for mode, found in result["crossover"].items():
            if any("profile" in row for row in rows_of(result, mode)):
                continue
            row = max(found["rows"], key=lambda one: one["num_tokens"])
            if "profile" in row and "profile" in min(row["ratios"], key=lambda one: one["ratio"]):
                yield result, mode, row


def _profile_lines(result: dict[str, Any], title: str, dense: dict[str, Any], region: dict[str, Any]) -> list[str]:
    lines = [
        f"{title}: one evaluation, dense and `{region['name']}` ({region['num_active']} of "
        f"{region['num_tokens']} image tokens), milliseconds ({record.origin(result)})",
        "",
        "| operations | dense | region | region / dense |",
        "| --- | --- | --- | --- |",
    ]
    for group, before in dense["profile"].items():
        after = region["profile"][group]
        if before or after:
            share = f"{after / before:.3f}" if before else ""
            lines.append(f"| {group} | {before:.1f} | {after:.1f} | {share} |")
    return [*lines, ""]


def drawn() -> tuple[dict[str, dict[str, Any]], dict[str, str], str]:
    """What the picture shows: results by name, where each comes from, and a digest of both."""
    results = {name.removeprefix("speed_"): result for name, result in checked_results().items()}
    captions = {name: _caption(result) for name, result in results.items()}
    return results, captions, hashlib.sha256(json.dumps([results, captions]).encode()).hexdigest()[:16]


def _caption(result: dict[str, Any]) -> str:
    return f"{record.machine(result)}; torch {result['versions']['torch']}; {result['date']}"


def draw(path: Path) -> None:
    """The picture of every result: speed-ups beside their limits, memory beside its estimate."""
    results, captions, digest = drawn()
    plot(results, path, captions, digest)


def is_drawn(path: Path) -> bool:
    """Whether the picture is of the results that are there."""
    if not path.is_file():
        return False
    with Image.open(path) as picture:
        return bool(picture.info.get("Description") == drawn()[2])


def memory_table() -> str:
    """Peak memory over the dense loop's beside the cache's estimate, and what selection and forecast take."""
    lines: list[str] = []
    for result in speed_results():
        found = [row for row in result["rows"] if row.get("memory", {}).get("extra_bytes") is not None]
        if found:
            lines += [*_memory_head(f"{heading(result)} ({record.origin(result)})"), *map(_memory_row, found), ""]
    for result, mode, row in largest_sizes():
        region = min(row["ratios"], key=lambda one: one["ratio"])
        if region.get("memory", {}).get("extra_bytes") is None:
            continue
        added = region["profile"][ADDED] / 1e3 / row["dense_step"]
        named = {**region, "mode": mode, "name": f"ratio {region['ratio']:g}", "overhead": {"share": added}}
        title = f"{heading(result, has_size=False)}, {row['size']} ({record.origin(result)})"
        lines += [*_memory_head(title, "all that RAS adds"), _memory_row(named), ""]
    return "\n".join(lines or ["Not measured yet."]) + "\n"


def _memory_head(title: str, what: str = "selection + forecast") -> list[str]:
    return [
        title,
        "",
        f"| mode | setting | K/V cache by the plan | peak over dense's | ratio | {what}, share of a dense step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]


def _memory_row(row: dict[str, Any]) -> str:
    memory = row["memory"]
    share = f"{row['overhead']['share']:.2%}" if "overhead" in row else ""
    return (
        f"| {row['mode']} | {row['name']} | {memory['kv_cache_estimate_bytes'] / MIB:.1f} MiB | "
        f"{memory['extra_bytes'] / MIB:.1f} MiB | {memory['extra_over_estimate']:.2f} | {share} |"
    )


def rounding_table() -> str:
    """What rounding makes of the models that it was measured on."""
    rows = record.read("rounding")["rows"]
    rows.sort(key=lambda row: (row["title"].split(",")[0], row["num_tokens"], row["num_blocks"]))
    lines: list[str] = []
    for where in dict.fromkeys(map(record.origin, rows)):
        lines += [
            f"Relative errors, root mean square ({where})",
            "",
            "| model | blocks | image tokens | region step over fresh keys | over stale keys | one unit in the last "
            "place of every block | compiled dense step | compiled region step |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [_rounding_row(row) for row in rows if record.origin(row) == where] + [""]
    return "\n".join(lines)


def _rounding_row(row: dict[str, Any]) -> str:
    errors = row["errors"]
    kinds = ("fresh", "stale", "last place", "compiled dense", "compiled region")
    cells = [f"{errors[kind]:.4f}" if kind in errors else "" for kind in kinds]
    return f"| {row['title']} | {row['num_blocks']} | {row['num_tokens']:,} | " + " | ".join(cells) + " |"


def crossover_table() -> str:
    """Picture sizes against ratios."""
    lines: list[str] = []
    for result in checked_results().values():
        for mode, found in result["crossover"].items():
            lines += [*_crossover_lines(result, mode, found), ""]
    return "\n".join(lines or ["Not measured yet."]) + "\n"


def _crossover_lines(result: dict[str, Any], mode: str, found: dict[str, Any]) -> list[str]:
    ratios = [one["ratio"] for one in found["rows"][0]["ratios"]]
    title = f"{heading(result, has_size=False)}, {mode}: speed-up of the loop by picture size"
    lines = [
        f"{title} ({record.origin(result)})",
        "",
        "| size | image tokens | " + " | ".join(f"ratio {ratio:g}" for ratio in ratios) + " | filling the cache |",
        "| --- | --- |" + " --- |" * (len(ratios) + 1),
    ]
    for row in found["rows"]:
        values = " | ".join(_crossover_cell(one) for one in row["ratios"])
        more = [one["captured_step"] / row["dense_step"] - 1 for one in row["ratios"]]
        lines.append(f"| {row['size']} | {row['num_tokens']:,} | {values} | {max(more, key=abs):+.0%} |")
    return [
        *lines,
        "",
        "; ".join(gain_text(ratio, size) for ratio, size in found["gains_from"].items()).capitalize() + ".",
    ]


def _crossover_cell(one: dict[str, Any]) -> str:
    more = f", predicted {one['predicted']:.2f}x" if one.get("predicted") else ""
    if f"{one['speedup_same_mode']:.2f}" != f"{one['speedup']:.2f}":
        more += f", over its own mode {one['speedup_same_mode']:.2f}x"
    return f"**{one['speedup']:.2f}x** (limit {one['limit']:.2f}x{more})"
