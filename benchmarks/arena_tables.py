"""The tables of the arena, from ``benchmarks/results/arena_*.json`` and ``sensitivity_embedded.json``."""

from __future__ import annotations

from typing import Any

from benchmarks import record
from benchmarks.cells import converged_steps, difference, interval, row_named
from benchmarks.goals import PRESETS_ALONE, digest_table, goals, goals_table
from ras_dit.arena.ours import OF_PRESETS


def arena_table(rows: list[dict[str, Any]]) -> str:
    """Rows of the arena, most compute first; 95 % bootstrap intervals in brackets."""
    lines = [
        "| method | T | FLOPs | time | PSNR to converged | PSNR to dense | SSIM to dense | check: subject right |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: -row["token_steps"]):
        cells = [interval(row, "psnr_converged", 1), interval(row, "psnr_dense", 1), interval(row, "ssim_dense", 3)]
        cells.append(f"{row['metrics']['subject'][0]:.0%}")
        lines.append(
            f"| {row['name']}{_mark(row)} | {row['token_steps']:.2f} | {row['flops_share']:.2f} | "
            f"{row['time_share']:.2f} | " + " | ".join(cells) + " |"
        )
    return "\n".join([*lines, ""])


def _mark(row: dict[str, Any]) -> str:
    """Rows of another machine than the others stand out."""
    return " †" if "hardware" in row else ""


def arena_origin(result: dict[str, Any]) -> str:
    return (
        f"The embedded model, {result['num_pictures']} pictures, 28-step grid unless said otherwise, guidance "
        f"{result['call']['guidance_scale']}: PSNR in dB and SSIM with 95 % bootstrap intervals, against the dense run "
        f"(Euler, 28 steps) and against a converged one (Adams-Bashforth 2, {converged_steps(result)} steps), all from "
        "the same noise. T is "
        "the number of token-steps (of step caches: the share of FLOPs times 28), FLOPs and time the share of those of "
        "the dense run (the fastest call of each). "
        f"({record.origin(result)}{_elsewhere(result)})"
    )


def _elsewhere(result: dict[str, Any]) -> str:
    """Where the rows with a mark were made."""
    marked = [row for row in result["rows"] if "hardware" in row]
    places = sorted({f"{row['hardware']['processor']}, commit {row['commit']}" for row in marked})
    return f"; †: {'; '.join(places)}" if places else ""


def chosen(result: dict[str, Any], *beginnings: str) -> list[dict[str, Any]]:
    """Rows whose names begin so."""
    return [row for row in result["rows"] if row["name"].startswith(beginnings)]


APART = ("ablation: ", "midway: ", OF_PRESETS, "cache ")
"""Begin the names of the rows that have one thing changed, which get tables of their own."""


def arena_blocks() -> dict[str, str]:
    """The tables of docs/arena.md."""
    result, large = record.read("arena_embedded"), record.read("arena_embedded_256")
    failures = "".join(f"* {name}: {why}\n" for name, why in result["failures"].items())
    return {
        "arena": f"{arena_origin(result)}\n\n{arena_table(contestants(result))}",
        "paired": paired_table(whole_pairs(result)),
        "failures": failures or "None.\n",
        "large": f"{arena_origin(large)}\n\n{arena_table(contestants(large))}",
        "large-paired": paired_table(whole_pairs(large)),
    }


def contestants(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that stand for a whole method."""
    return [row for row in result["rows"] if not row["name"].startswith(APART) and row["name"] != "converged"]


def whole_pairs(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Pairs of those."""
    return [pair for pair in result["paired"] if not pair["other"].startswith(APART)]


def quality_blocks() -> dict[str, str]:
    """The tables of docs/quality.md."""
    result, large = record.read("arena_embedded"), record.read("arena_embedded_256")
    return {
        "goals": goals_block(result),
        "midway": changes_table(result, "midway: "),
        "ablation": changes_table(result, "ablation: "),
        "preset-options": preset_options_block(result, large),
        "sensitivity": sensitivity_block(result) + more_pictures_block(),
        "large": large_table(large),
        "large-goals": goals_block(large),
        "large-sensitivity": sensitivity_block({**large, "left_out": {}}),
        "memory": arena_table(chosen(result, "cache ")),
        "lengths": lengths_block(),
    }


def goals_block(result: dict[str, Any]) -> str:
    """Ours against the best of each kind of rival, at five budgets."""
    return (
        f"{result['num_pictures']} pictures of the embedded model, differences in PSNR picture by picture with 95 % "
        "bootstrap intervals; of each kind of rival the best that costs as much (a step cache may take 1.15 times "
        "our time, or 1.15 times our FLOPs). Bold: ours is ahead, and the interval clear of 0. Times are shares of the "
        f"dense run's. ({record.origin(result)})\n\n{goals_table(result['goals'])}"
    )


def changes_table(result: dict[str, Any], prefix: str) -> str:
    """A plan, and what becomes of it with one thing changed at a time: differences picture by picture."""
    rows = {row["name"]: row for row in chosen(result, prefix)}
    base = rows.pop(f"{prefix}nothing")
    cells = f"{interval(base, 'psnr_converged', 1)} | {interval(base, 'psnr_dense', 1)}"
    lines = [
        "| changed | T | FLOPs | time | PSNR to converged, in dB | to dense |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| nothing: PSNR itself | {_costs(base)} | {cells} |",
    ]
    pairs = {pair["other"]: pair for pair in result["paired"] if pair["ours"] == base["name"]}
    for name, row in rows.items():
        changed = _other_way_round(pairs[name])
        lines.append(f"| {name.removeprefix(prefix)}{_mark(row)} | {_costs(row)} | {' | '.join(changed)} |")
    return "\n".join([*lines, ""])


def preset_options_block(result: dict[str, Any], large: dict[str, Any]) -> str:
    """What becomes of each preset with one option changed."""
    lengths = ((f"256 tokens, {steps} steps", found) for steps, found in results_of_lengths().items())
    parts = (("256 tokens", result), ("256 tokens", more_pictures()), ("1,024 tokens", large), *lengths)
    return "\n".join(
        f"{one['num_pictures']} pictures of {size}. ({record.origin(one)})\n\n{preset_options_table(one)}"
        for size, one in parts
    )


def preset_options_table(result: dict[str, Any]) -> str:
    """Differences picture by picture to each preset, with one option changed."""
    rows = {row["name"]: row for row in chosen(result, OF_PRESETS)}
    lines = ["| preset | changed | T | PSNR to converged, in dB | to dense |", "| --- | --- | --- | --- | --- |"]
    for pair in (pair for pair in result["paired"] if pair["other"] in rows):
        changed = _other_way_round(pair)
        name, _, what = pair["other"].removeprefix(OF_PRESETS).partition(", ")
        lines.append(f"| {name} | {what} | {rows[pair['other']]['token_steps']:.2f} | {' | '.join(changed)} |")
    return "\n".join([*lines, ""])


def _costs(row: dict[str, Any]) -> str:
    return f"{row['token_steps']:.2f} | {row['flops_share']:.2f} | {row['time_share']:.2f}"


def _other_way_round(pair: dict[str, Any]) -> list[str]:
    """How much better the other one is than ours."""
    return [difference([-mean, -high, -low]) for mean, low, high in _of(pair)]


def _of(pair: dict[str, Any]) -> list[list[float]]:
    return [pair[name] for name in ("psnr_converged", "psnr_dense")]


def large_table(result: dict[str, Any]) -> str:
    """The presets on 1,024 tokens, and whatever they were compared with."""
    rows = {row["name"]: row for row in result["rows"]}
    lines = [
        f"{result['num_pictures']} pictures of 1,024 tokens, converged run of {converged_steps(result)} steps. "
        f"({record.origin(result)})",
        "",
        "| preset | T | FLOPs | time | PSNR to dense | against | time | to converged, difference in dB | to dense |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in chosen(result, "preset "):
        own = f"{row['name'].removeprefix('preset ')} | {_costs(row)} | {interval(row, 'psnr_dense', 1)}"
        for pair in (pair for pair in result["paired"] if pair["ours"] == row["name"]):
            differences = " | ".join(difference(one) for one in _of(pair))
            lines.append(f"| {own} | {pair['other']} | {rows[pair['other']]['time_share']:.2f} | {differences} |")
            own = " |" * 4
    return "\n".join([*lines, ""])


METRICS = {
    "psnr": "PSNR in dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "features": "distance in the classifier's features",
    "subject": "subject right",
    "background": "background right",
    "certainty": "log-likelihood of the prompt's scene in nats",
    "clip": "CLIP score",
    "kernel": "kernel distance",
    "frechet": "Frechet distance",
    "fid": "FID",
    "sfid": "sFID",
    "kid": "KID",
}


def metric_title(name: str) -> str:
    """A metric's name in results.json in words."""
    kind, _, reference = name.partition("_")
    words = {"dense": " to dense", "converged": " to converged", "real": " to real pictures"}
    alone = " to renders" if kind in ("kernel", "frechet") else ""
    return METRICS[kind] + words.get(reference, alone)


def sensitivity_block(result: dict[str, Any]) -> str:
    """Whether every metric tells the dense run from that of half its steps; results from before have none."""
    found = result.get("sensitivity")
    if found is None:
        return "These results are from before this check.\n"
    lines = [
        f"{result['num_pictures']} pictures. ({record.origin(result)})",
        "",
        f"| metric | {found['first_steps']} steps | {found['second_steps']} steps | difference | told apart |",
        "| --- | --- | --- | --- | --- |",
    ]
    for metric, one in found["metrics"].items():
        mean, low, high = one["difference"]
        cells = (
            metric_title(metric),
            *(f"{0.0 if abs(one[name]) < 1e-6 else one[name]:.4g}" for name in ("first", "second")),
            f"{mean:+.3g} ({low:+.3g} to {high:+.3g})",
            "yes" if one["is_told_apart"] else "**no**",
        )
        lines.append("| " + " | ".join(cells) + " |")
    left_out = "".join(f"* {metric_title(name)}: {why}\n" for name, why in result["left_out"].items())
    return "\n".join([*lines, ""]) + (f"\nLeft out:\n\n{left_out}" if left_out else "")


def more_pictures() -> dict[str, Any]:
    """A few methods on many pictures."""
    return record.read("sensitivity_embedded")


def more_pictures_block() -> str:
    """Whether metrics tell methods apart on more pictures, with the distances of sets, which need them."""
    result = more_pictures()
    lines = [
        "",
        "| method | " + " | ".join(metric_title(name) for name in SET_METRICS) + " |",
        "| --- " * (1 + len(SET_METRICS)) + "|",
    ]
    for row in (row for row in result["rows"] if not row["name"].startswith(APART)):
        cells = [_value(row["metrics"].get(name)) for name in SET_METRICS]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\nOn more pictures: " + sensitivity_block({**result, "left_out": {}}) + "\n".join([*lines, ""])


SET_METRICS = ("frechet_dense", "frechet_converged", "frechet", "kernel", "certainty")


def _value(numbers: list[float] | None) -> str:
    if numbers is None:
        return ""
    return f"{numbers[0]:.4g}" + (f" ({numbers[1]:.3g} to {numbers[2]:.3g})" if len(numbers) == 3 else "")


def paired_table(pairs: list[dict[str, Any]]) -> str:
    """How much better one method is than another, picture by picture."""
    lines = ["| ours | against | PSNR to converged, difference in dB | to dense |", "| --- | --- | --- | --- |"]
    for pair in pairs:
        cells = [difference(one) for one in _of(pair)]
        lines.append(f"| {pair['ours']} | {pair['other']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def quality_digest() -> str:
    """What a reader needs first: ours against the best of each kind of rival."""
    result, large = record.read("arena_embedded"), record.read("arena_embedded_256")
    return (
        f"{digest_table(result['goals'])}\n"
        "A cell: by how many dB of PSNR ours is nearer to the dense picture of 28 Euler steps / to the converged one, "
        f"the mean over {result['num_pictures']} pictures of 256 tokens. Bold: the 95 % bootstrap interval is clear of "
        "0.\n\n"
        "* **Rivals:** the best of each kind that costs as much. (A step cache may take 1.15 times our time, or 1.15 "
        "times our FLOPs.)\n"
        "* **Ours:** the presets `quality` (which only skips steps), `regions`, `regions_fast` and `regions_faster`. "
        "No presets are the plans of T = 6, and those of the second number at T = 17 and 11.5 (there `regions` with "
        "`solver_order=2`).\n"
        f"* **Result:** {_digest_of_goals(result, large)}\n"
        "* **Caution:** the authors' ranking orders tokens the wrong way round on this model. On theirs it may do "
        "better.\n\n"
        "Rivals by name, intervals, and what to make of it: [docs/quality.md](docs/quality.md). All "
        f"{len(contestants(result))} rows (some plans stand there twice), with versions and commits: "
        f"[docs/arena.md](docs/arena.md). ({record.machine(result)}.)\n"
    )


def _digest_of_goals(small: dict[str, Any], large: dict[str, Any]) -> str:
    """In how many cells of the table of goals ours is ahead, here and on 1,024 tokens."""
    num_small = sum(goal["difference"][1] > 0 for goal in small["goals"])
    differences = [goal["difference"] for goal in large["goals"]]
    ahead = [mean for mean, low, _ in differences if low > 0]
    reach = f", by {min(ahead):.1f} to {max(ahead):.1f} dB" if ahead else ""
    alone = [goals(result["rows"], PRESETS_ALONE) for result in (small, large)]
    counts = [f"{sum(goal['difference'][1] > 0 for goal in found)} of {len(found)}" for found in alone]
    is_behind = any(goal["difference"][2] < 0 for found in alone for goal in found)
    rest = "" if is_behind else "; elsewhere no difference can be told"
    return (
        f"ours is ahead in {num_small} of these {len(small['goals'])} comparisons, and on 1,024 tokens "
        f"({large['num_pictures']} pictures of 256 x 256) in {len(ahead)} of {len(differences)}{reach}. With presets "
        f"alone, at T = 17 to 7, it is {counts[0]} and {counts[1]}{rest}."
    )


def results_of_lengths() -> dict[int, dict[str, Any]]:
    """Results of runs of other lengths than the presets were made for, by their number of steps."""
    found = record.read_all("arena_embedded_*_steps")
    by_steps = {row_named(result, "dense")["method"]["steps"]: result for result in found.values()}
    return dict(sorted(by_steps.items()))


def lengths_block() -> str:
    """How the presets do in runs of those lengths."""
    lines = []
    for steps, result in results_of_lengths().items():
        by_name = {row["name"]: row for row in result["rows"]}
        lines += [
            f"**{steps} steps**, {result['num_pictures']} pictures, converged run of {converged_steps(result)} steps. "
            f"({record.origin(result)})",
            "",
            "| preset | T | FLOPs | PSNR to dense | against | to dense, difference in dB | to converged |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for pair in whole_pairs(result):
            row = by_name[pair["ours"]]
            lines.append(
                f"| {pair['ours'].removeprefix('preset ')} | {row['token_steps']:.2f} | {row['flops_share']:.2f} | "
                f"{interval(row, 'psnr_dense', 1)} | {pair['other']} | {difference(pair['psnr_dense'])} | "
                f"{difference(pair['psnr_converged'])} |"
            )
        lines.append("")
    return "\n".join(lines)
