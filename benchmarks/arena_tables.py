"""The tables of quality, from ``benchmarks/results/arena_*.json`` and their like."""

from __future__ import annotations

from typing import Any

from benchmarks import record


def arena_table(rows: list[dict[str, Any]]) -> str:
    """Rows of the arena, most compute first; 95 % bootstrap intervals in brackets."""
    lines = [
        "| method | T | FLOPs | time | PSNR to converged | PSNR to dense | SSIM to dense | subject right |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda row: -row["token_steps"]):
        cells = [_interval(row, "psnr_converged", 1), _interval(row, "psnr_dense", 1), _interval(row, "ssim_dense", 3)]
        cells.append(f"{row['metrics']['subject'][0]:.0%}")
        lines.append(
            f"| {row['name']} | {row['token_steps']:.2f} | {row['flops_share']:.2f} | {row['time_share']:.2f} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join([*lines, ""])


def _interval(row: dict[str, Any], name: str, digits: int) -> str:
    if name not in row["metrics"]:
        return ""
    mean, low, high = row["metrics"][name]
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def arena_origin(result: dict[str, Any]) -> str:
    return (
        f"The embedded model, {result['num_pictures']} pictures, 28-step grid unless said otherwise, guidance "
        f"{result['call']['guidance_scale']}: PSNR in dB and SSIM with 95 % bootstrap intervals, against the dense run "
        f"(Euler, 28 steps) and against a converged one (Adams-Bashforth 2, {converged_steps(result)} steps), all from "
        "the same noise. T is "
        "the number of token-steps (of step caches: the share of FLOPs times 28), FLOPs and time the share of those of "
        "the dense run (the fastest call of each). "
        f"({record.origin(result)})"
    )


def converged_steps(result: dict[str, Any]) -> int:
    """Steps of the converged run."""
    steps: int = _reference(result, "converged")["method"]["steps"]
    return steps


def _reference(result: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in result["rows"] if row["name"] == name)
    return found


def chosen(result: dict[str, Any], *beginnings: str) -> list[dict[str, Any]]:
    """Rows whose names begin so."""
    return [row for row in result["rows"] if row["name"].startswith(beginnings)]


def quality_blocks(result: dict[str, Any]) -> dict[str, str]:
    """The tables of docs/quality.md."""
    apart = ("ablation", "cache ")
    others = [row for row in result["rows"] if not row["name"].startswith(apart) and row["name"] != "converged"]
    failures = "".join(f"* {name}: {why}\n" for name, why in result["failures"].items())
    return {
        "arena": arena_origin(result) + "\n\n" + arena_table(others),
        "paired": paired_table(result["paired"]),
        "random": random_block(),
        "peers": peers_block(),
        "midway": midway_block(),
        "failures": failures or "None.\n",
        "sensitivity": sensitivity_block(result) + more_pictures_block(),
        "ablation": arena_table(chosen(result, "ablation")),
        "memory": arena_table(chosen(result, "cache ")),
    }


def random_block() -> str:
    """Random tokens on our plan of T = 6, which were painted apart from the others."""
    result = record.read("arena_embedded_t6")
    rows = [row for row in result["rows"] if row["token_steps"] < 7]
    return f"{arena_origin(result)}\n\n{arena_table(rows)}\n{paired_table(result['paired'])}"


def peers_block() -> str:
    """Region steps midway, step caches at their best and dense solvers on even grids, beside the presets, all of one
    run."""
    result = record.read("arena_embedded_peers")
    rows = [row for row in result["rows"] if row["name"] != "converged" and not row["name"].startswith(CHANGED)]
    pairs = [pair for pair in result["paired"] if not pair["ours"].startswith(CHANGED)]
    failures = "".join(f"* {name} does not run: {why}\n" for name, why in result["failures"].items())
    return f"{arena_origin(result)}\n\n{arena_table(rows)}\n{paired_table(pairs)}\n{failures}"


CHANGED = "midway: "
"""Begins the names of plans with region steps midway that have one thing changed."""


def midway_block() -> str:
    """One thing changed at a time in a plan with region steps midway between dense ones."""
    result = record.read("arena_embedded_peers")
    pairs = [pair for pair in result["paired"] if pair["ours"].startswith(CHANGED)]
    return f"{arena_table(chosen(result, CHANGED))}\n{paired_table(pairs)}"


def large_blocks() -> dict[str, str]:
    """The tables of the model of 256 x 256, where its arena was run."""
    if not (record.RESULTS / "arena_embedded_256.json").is_file():
        return dict.fromkeys(("large", "large-paired", "large-sensitivity"), "Not run yet.\n")
    result = record.read("arena_embedded_256")
    rows = [row for row in result["rows"] if row["name"] != "converged"]
    return {
        "large": arena_origin(result) + "\n\n" + arena_table(rows),
        "large-paired": paired_table(result["paired"]),
        "large-sensitivity": sensitivity_block({**result, "left_out": {}}),
    }


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
        difference, low, high = one["difference"]
        cells = (
            metric_title(metric),
            *(f"{0.0 if abs(one[name]) < 1e-6 else one[name]:.4g}" for name in ("first", "second")),
            f"{difference:+.3g} ({low:+.3g} to {high:+.3g})",
            "yes" if one["is_told_apart"] else "**no**",
        )
        lines.append("| " + " | ".join(cells) + " |")
    left_out = "".join(f"* {metric_title(name)}: {why}\n" for name, why in result["left_out"].items())
    return "\n".join([*lines, ""]) + (f"\nLeft out:\n\n{left_out}" if left_out else "")


def more_pictures_block() -> str:
    """The same on more pictures, where that was run: for distances of sets, which need them."""
    if not (record.RESULTS / "sensitivity_embedded.json").is_file():
        return ""
    result = record.read("sensitivity_embedded")
    lines = [
        "",
        "| method | " + " | ".join(metric_title(name) for name in SET_METRICS) + " |",
        "| --- " * (1 + len(SET_METRICS)) + "|",
    ]
    for row in result["rows"]:
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
        cells = [_difference(pair[name]) for name in ("psnr_converged", "psnr_dense")]
        lines.append(f"| {pair['ours']} | {pair['other']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def dynamics_table() -> str:
    """How noise moves along a dense run."""
    result = record.read("dynamics_embedded")
    lines = [
        f"The embedded model, {result['num_pictures']} pictures, dense Adams-Bashforth 2, 28 steps; change over "
        f"{result['gap']} steps, and what the {result['gap']} steps before say of it. ({record.origin(result)})",
        "",
        "| step | noise level | change of the noise | best damping of a line | a quarter of the tokens holds | chosen "
        "by predicted error | by low std |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"][::2]:
        held = [f"{row[name]:.0%}" for name in ("held_by_best", "held_by_predicted_error", "held_by_low_std")]
        lines.append(
            f"| {row['step']} | {row['sigma']:.2f} | {row['change']:.0%} | {row['best_damping']:.2f} | "
            + " | ".join(held)
            + " |"
        )
    return "\n".join([*lines, ""])


def _difference(numbers: list[float]) -> str:
    mean, low, high = numbers
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def inpainting_table() -> str:
    """Nearness to a dense run inside a mask, with and without a region of interest."""
    result = record.read("inpainting_embedded")
    share = result["side"] ** 2 / 128**2
    lines = [
        f"The embedded model, {result['num_pictures']} pictures, something else painted into a box of {share:.0%} of "
        "each: PSNR in dB to the dense run inside the box, with 95 % bootstrap intervals, and the difference to "
        f"`balanced` picture by picture. ({record.origin(result)})",
        "",
        "| method | T | PSNR inside to dense | over `balanced` |",
        "| --- | --- | --- | --- |",
    ]
    for row in sorted(result["rows"], key=lambda row: -row["token_steps"]):
        mean, low, high = row["psnr"]
        over = "{:+.1f} ({:+.1f} to {:+.1f})".format(*row["better_by"])
        lines.append(f"| {row['name']} | {row['token_steps']:.2f} | {mean:.1f} ({low:.1f} to {high:.1f}) | {over} |")
    return "\n".join([*lines, ""])


def losses_table() -> str:
    """What is lost to old keys and values, and what to tokens that are not computed."""
    result = record.read("losses_embedded")
    lines = [
        f"The embedded model, {result['num_pictures']} pictures, PSNR in dB to the dense run with 95 % bootstrap "
        f"intervals, and what mending gains picture by picture. ({record.origin(result)})",
        "",
        "| plan | T | mended in the region steps | PSNR to dense | gained |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        mean, low, high = row["psnr"]
        gained = _difference(row["gained"]) if row["mended"] else ""
        cells = (
            f"{row['token_steps']:.2f}",
            row["mended"] or "nothing",
            f"{mean:.1f} ({low:.1f} to {high:.1f})",
            gained,
        )
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


DIGEST = (
    "dense",
    *("preset quality", "Euler, 17 steps", "UniPC 2, 17 steps", "authors, 0.5, 28 steps"),
    "DBCache 0.08 with TaylorSeer",
    *("preset balanced", "Euler, 12 steps", "UniPC 2, 12 steps", "authors, 0.25, 28 steps"),
    *("MagCache 0.06", "MagCache 0.12", "DBCache 0.16", "DBCache 0.32"),
    *("preset fast", "RAS, T 8.75, order 1", "Euler, 9 steps", "UniPC 2, 9 steps", "authors, 0.125, 28 steps"),
    *("skipping only, T 6, order 1", "RAS, T 6, order 1", "Euler, 6 steps", "UniPC 2, 6 steps"),
)
"""What a reader of the README needs first: the presets and, of each budget, what could be had instead."""


DIGEST_OF_PEERS = (
    *(f"TaylorSeer of attention and MLP order 1, every {interval}" for interval in (2, 3, 4)),
    *("preset quality", "preset balanced", "preset fast", "preset regions", "preset regions_fast"),
)


def quality_digest(result: dict[str, Any]) -> str:
    """The rows a reader needs first; all of them are in docs/quality.md."""
    rows = [row for row in result["rows"] if row["name"] in DIGEST]
    peers = record.read("arena_embedded_peers")
    beside = [row for row in peers["rows"] if row["name"] in DIGEST_OF_PEERS]
    return (
        arena_origin(result)
        + "\n\n"
        + arena_table(rows)
        + "\nThe presets with regions, and TaylorSeer as its authors have it, in a run of its own on the same pictures "
        f"({record.origin(peers)}):\n\n"
        + arena_table(beside)
        + f"\nAll {len(result['rows'])} methods, and what to make of them: [docs/quality.md](docs/quality.md).\n"
    )


def lengths_block() -> str:
    """How the presets do in runs of other lengths than that they were made for, where that was run."""
    results = [record.read(path.stem) for path in record.RESULTS.glob("arena_embedded_*_steps.json")]
    if not results:
        return "Not run yet.\n"
    lines = []
    for result in sorted(results, key=lambda result: _reference(result, "dense")["method"]["steps"]):
        steps = _reference(result, "dense")["method"]["steps"]
        by_name = {row["name"]: row for row in result["rows"]}
        lines += [
            f"**{steps} steps**, {result['num_pictures']} pictures, converged run of {converged_steps(result)} steps. "
            f"({record.origin(result)})",
            "",
            "| preset | T | FLOPs | PSNR to dense | against | to dense, difference in dB | to converged |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for pair in result["paired"]:
            row = by_name[pair["ours"]]
            lines.append(
                f"| {pair['ours'].removeprefix('preset ')} | {row['token_steps']:.2f} | {row['flops_share']:.2f} | "
                f"{_interval(row, 'psnr_dense', 1)} | {pair['other']} | {_difference(pair['psnr_dense'])} | "
                f"{_difference(pair['psnr_converged'])} |"
            )
        lines.append("")
    return "\n".join(lines)


def fitted_block() -> str:
    """What fitting a forecast to dense runs is worth."""
    if not (record.RESULTS / "calibration_embedded.json").is_file():
        return "Not run yet.\n"
    result = record.read("calibration_embedded")
    by_name = {row["name"]: row for row in result["rows"]}
    lines = [
        f"Fitted to {result['fit_pictures']} pictures, judged by {result['num_pictures']} others; converged run of "
        f"{converged_steps(result)} steps; differences picture by picture with 95 % bootstrap intervals. "
        f"({record.origin(result)})",
        "",
        "| fitted | T | time | PSNR to converged | PSNR to dense | against | to converged, difference in dB "
        "| to dense |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for pair in result["paired"]:
        row, name = by_name[pair["ours"]], pair["ours"].removesuffix(", fitted")
        own = [name, f"{row['token_steps']:.2f}", f"{row['time_share']:.2f}"]
        own += [_interval(row, "psnr_converged", 1), _interval(row, "psnr_dense", 1)]
        is_itself = pair["other"] == name
        cells = [
            *(own if is_itself else [""] * len(own)),
            "without the fit" if is_itself else pair["other"],
            _difference(pair["psnr_converged"]),
            _difference(pair["psnr_dense"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
