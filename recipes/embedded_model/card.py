"""Stage 7: write the model card from the training log and the measurements; no number in it is typed."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ras_dit.embedded import embedded_backgrounds, embedded_subjects, model_folder, training_record
from ras_dit.embedded.large import LARGE_RECORD, LARGE_WEIGHTS
from recipes.embedded_model.checkpoint import write_json

CURVE_ROWS = 12


def share(entry: dict[str, Any]) -> str:
    """Word a share with its interval."""
    low, high = entry["wilson_95"]
    trials = f"{entry['successes']} of {entry['trials']}"
    return f"{100 * entry['share']:.1f} % ({trials}; 95 % interval {100 * low:.1f} to {100 * high:.1f} %)"


def curve_table(history: list[dict[str, float]]) -> str:
    """Return a table of the training loss over time, each row the mean over the logged steps since the last."""
    lines = ["| minutes | samples seen | flow-matching loss |", "|---:|---:|---:|"]
    chunk = max(1, math.ceil(len(history) / CURVE_ROWS))
    for start in range(0, len(history), chunk):
        rows = history[start : start + chunk]
        loss = sum(row["loss"] for row in rows) / len(rows)
        lines.append(f"| {rows[-1]['minutes']:.0f} | {rows[-1]['samples']:,} | {loss:.3f} |")
    return "\n".join(lines)


def draw_curve(history: list[dict[str, float]], path: Path, width: int = 640, height: int = 240) -> None:
    """Draw the loss against samples seen, log scale."""
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = 50, 14, width - 14, height - 34
    losses = [math.log10(row["loss"]) for row in history]
    low, high, last = min(losses), max(losses), history[-1]["samples"]

    def place(samples: float, loss: float) -> tuple[float, float]:
        return left + (right - left) * samples / last, bottom - (bottom - top) * (loss - low) / (high - low)

    pen.line([(left, top), (left, bottom), (right, bottom)], fill="black")
    for loss in (low, (low + high) / 2, high):
        pen.text((6, place(0, loss)[1] - 6), f"{10**loss:.2f}", fill="black", font_size=11)
    for samples in range(0, last + 1, max(1, 10_000 * round(last / 50_000))):
        pen.text((place(samples, low)[0] - 10, bottom + 4), f"{samples // 1000}k", fill="black", font_size=11)
    pen.text((left + 180, bottom + 18), "samples seen; flow-matching loss, log scale", fill="black", font_size=11)
    pen.line([place(row["samples"], loss) for row, loss in zip(history, losses, strict=True)], fill="#2060c0", width=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def model_size(folder: Path) -> float:
    """Return the folder's size in MB."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def describe_failures(result: dict[str, Any], limit: int = 12) -> str:
    """Name the subjects that were mistaken most, and for what."""
    mistaken = list(result["mistaken_subjects"].items())[:limit]
    if not mistaken:
        return "none"
    return "; ".join(f"{name} (taken for {', '.join(sorted(set(guesses)))})" for name, guesses in mistaken)


def describe_large() -> str:
    """Tell of the model of 256 x 256 what its training and its measurement recorded; nothing if it is not there."""
    training, measured = LARGE_RECORD, Path("benchmarks/results/embedded_model_256.json")
    if not training.is_file() or not measured.is_file():
        return ""
    log, record = (json.loads(path.read_text(encoding="utf-8")) for path in (training, measured))
    sittings = log["sittings"]
    result, config = record["results"], record["config"]
    section = Path(__file__).with_name("card_large.md").read_text(encoding="utf-8")
    return section.format(
        megabytes=f"{LARGE_WEIGHTS.stat().st_size / 1e6:.1f}",
        minutes=f"{sum(one['minutes'] for one in sittings):.0f}",
        updates=f"{sum(one['step'] for one in sittings):,}",
        whole=f"{sum(one['whole_pictures'] for one in sittings):,}",
        windows=f"{sum(one['windows'] for one in sittings):,}",
        scenes=f"{max(one['scenes'] for one in sittings):,}",
        num_samples=config["samples"],
        steps=config["steps"],
        guidance=config["guidance_scale"],
        subject=share(result["subject"]),
        background=share(result["background"]),
        failures=describe_failures(result),
        frechet=result["frechet_distance"],
        frechet_renders=result["frechet_distance_of_renders"],
        hardware=record["hardware"],
        date=record["date"][:10],
    )


def write_card(record: dict[str, Any], log: dict[str, Any], vae: dict[str, Any], template: str) -> str:
    """Fill the card's template."""
    result, config, settings, classifier = record["results"], record["config"], log["settings"], record["classifier"]
    last = log["history"][-1]
    tail = [row["loss"] for row in log["history"][-10:]]
    transformer = json.loads((model_folder() / "transformer" / "config.json").read_text())
    return template.format(
        subjects=", ".join(embedded_subjects()),
        num_subjects=len(embedded_subjects()),
        backgrounds=", ".join(embedded_backgrounds()),
        num_backgrounds=len(embedded_backgrounds()),
        size=config["size"],
        tokens=(transformer["sample_size"] // 2) ** 2,
        layers=transformer["num_layers"],
        heads=transformer["num_attention_heads"],
        width=settings["width"],
        channels=transformer["in_channels"],
        megabytes=f"{model_size(model_folder()):.1f}",
        psnr=f"{vae['psnr']:.1f}",
        vae_minutes=f"{vae['minutes'] + vae.get('refined_minutes', 0):.0f}",
        minutes=f"{log['minutes']:.0f}",
        samples=f"{last['samples']:,}",
        updates=f"{log['step']:,}",
        batch=round(last["samples"] / last["step"]),
        loss=f"{sum(tail) / len(tail):.3f}",
        hardware=record["hardware"],
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        date=record["date"][:10],
        steps=config["steps"],
        guidance=config["guidance_scale"],
        max_sequence_length=config.get("max_sequence_length", 256),
        num_samples=config["samples"],
        subject=share(result["subject"]),
        background=share(result["background"]),
        both=share(result["both"]),
        frechet=result["frechet_distance"],
        frechet_renders=result["frechet_distance_of_renders"],
        classifier_subject=f"{100 * classifier['held_out_subject_accuracy']:.2f}",
        classifier_background=f"{100 * classifier['held_out_background_accuracy']:.2f}",
        classifier_pictures=f"{classifier['held_out_pictures']:,}",
        classifier_decoded=f"{100 * classifier['decoded_subject_accuracy']:.2f}",
        failures=describe_failures(result),
        curve=curve_table(log["history"]),
        large=describe_large(),
        notes="".join(f"{note}\n\n" for note in log.get("notes", [])),
    )


def main(command_line: list[str] | None = None) -> None:
    """Write the card, the curve and the record of the training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/embedded_model.json"))
    parser.add_argument("--card", type=Path, default=Path("src/ras_dit/embedded/MODEL_CARD.md"))
    parser.add_argument("--record", type=Path, default=training_record(), help="what `start` goes on from")
    parser.add_argument("--curve", type=Path, default=Path("docs/images/embedded_training_curve.png"))
    a = parser.parse_args(command_line)
    log = json.loads((a.out / "train_log.json").read_text())
    vae = json.loads((a.out / "vae_result.json").read_text())
    template = Path(__file__).with_name("card_template.md").read_text(encoding="utf-8")
    draw_curve(log["history"], a.curve)
    write_json({"vae": vae, "log": log}, a.record)
    a.card.write_text(write_card(json.loads(a.json.read_text()), log, vae, template), encoding="utf-8")


if __name__ == "__main__":
    main()
