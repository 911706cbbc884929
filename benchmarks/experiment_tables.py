"""The tables of the experiments beside the arena: how noise moves, what region steps lose, inpainting, fits, plans from
dense runs.
"""

from __future__ import annotations

from benchmarks import record
from benchmarks.cells import converged_steps, difference, interval
from ras_dit.presets import described


def experiment_blocks() -> dict[str, str]:
    """Those of docs/quality.md."""
    return {
        "fitted": fitted_block(),
        "plan-search": plan_search_block(),
        "dynamics": dynamics_table(),
        "losses": losses_table(),
        "inpainting": inpainting_table(),
        "batch": batch_tables(),
    }


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
        gained = difference(row["gained"]) if row["mended"] else ""
        cells = (
            f"{row['token_steps']:.2f}",
            row["mended"] or "nothing",
            f"{mean:.1f} ({low:.1f} to {high:.1f})",
            gained,
        )
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def batch_tables() -> str:
    """Active sets of every image's own against one for the batch."""
    lines = []
    for result in record.read_all("batch_embedded*").values():
        num_tokens = (result["size"] // 8) ** 2
        lines += [
            f"The embedded model, {result['num_pictures']} pictures of {num_tokens:,} tokens in batches of "
            f"{result['batch']}: PSNR in dB to the dense run with 95 % bootstrap intervals, the difference to one "
            "shared set picture by picture, and the speed-up over the dense run (median of runs in turns, good to its "
            f"first digit). ({record.origin(result)})",
            "",
            "| plan | T | active sets | PSNR to dense | over one shared set | speed-up |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in result["rows"]:
            mean, low, high = row["psnr"]
            gained = "" if row["way"] == "one shared set" else difference(row["better_by"])
            lines.append(
                f"| {row['name']} | {row['token_steps']:.2f} | {row['way']} | {mean:.1f} ({low:.1f} to {high:.1f}) | "
                f"{gained} | {row['speedup']:.2f}x |"
            )
        lines.append("")
    return "\n".join(lines)


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
        own += [interval(row, "psnr_converged", 1), interval(row, "psnr_dense", 1)]
        is_itself = pair["other"] == name
        cells = [
            *(own if is_itself else [""] * len(own)),
            "without the fit" if is_itself else pair["other"],
            difference(pair["psnr_converged"]),
            difference(pair["psnr_dense"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def plan_search_block() -> str:
    """What plans found on dense runs are worth, and how well their simulation knows what plans do."""
    result = record.read("plan_search_embedded")
    lines = []
    for part in result["parts"].values():
        rows = {row["name"]: row for row in part["rows"]}
        num_tokens = (part["size"] // 8) ** 2
        lines += [
            f"**{part['num_steps']} steps, {num_tokens:,} tokens**, found on {part['fit_pictures']} pictures, judged "
            f"by {part['num_pictures']} others. ({record.origin(part)})",
            "",
            "| for the cost of | FLOPs | plan found | T | PSNR to dense, preset | found | difference in dB |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for pair in part["paired"]:
            found, preset = rows[pair["ours"]], rows[pair["other"]]
            config = found["method"]["config"]
            is_own = config == preset["method"]["config"]
            cells = (
                preset["name"].removeprefix("preset "),
                f"{preset['flops_share']:.2f}",
                "its own" if is_own else described(config["step_ratios"]),
                f"{found['token_steps']:.2f}",
                interval(preset, "psnr_dense", 1),
                interval(found, "psnr_dense", 1),
                difference(pair["psnr_dense"]),
            )
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    known = result.get("agreement")
    if known is None:
        return "\n".join(lines)
    steps = ", ".join(f"{known['growth'][index]:.2f} if made in step {index}" for index in (2, 4, 8, 15, 22))
    lines += [
        f"Of {len(known['plans'])} first-order plans of the arena the simulation's numbers and the PSNR to the dense "
        f"picture go together with a correlation of {known['correlation']:.2f}; a line through them misses by "
        f"{known['residual']:.1f} dB (standard deviation). By the end of a run of 28 evaluations an error has grown to "
        f"this many times its size: {steps}.",
        "",
    ]
    return "\n".join(lines)
