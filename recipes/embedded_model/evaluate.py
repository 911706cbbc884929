"""Stage 6: measure how well samples follow their prompts, and show some of them.

`python -m recipes.embedded_model.evaluate --out runs/embedded`; torchrun shares the work among processes.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ras_dit.arena.distances import frechet_to
from ras_dit.embedded import (
    EMBEDDED_SIZES,
    GUIDANCE_SCALE,
    MAX_SEQUENCE_LENGTH,
    describe,
    model_folder,
    scene_tables,
)
from ras_dit.embedded.classifier import RENDERS, SceneClassifier, halve, load_classifier
from ras_dit.embedded.large import LARGE_SIZE, LARGE_WEIGHTS, enlarge_pipeline
from recipes.embedded_model.checkpoint import Ranks, mixed_precision, save_atomically, write_json
from recipes.embedded_model.model import CountedRowAttention
from recipes.embedded_model.scenes import BACKGROUNDS, DEFAULT_FONT, SUBJECTS, Renderer
from recipes.embedded_model.vae import to_unit

REFERENCE_SEED = 41
NUM_REFERENCES = 1000
Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Case:
    """One prompt with its labels and seed."""

    prompt: str
    subject: int
    background: int
    seed: int


@dataclass(frozen=True)
class Share:
    """A share of successes with its 95 % Wilson interval."""

    successes: int
    trials: int

    def as_dict(self) -> dict[str, Any]:
        """Return the share and the interval: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
        n, p = self.trials, self.successes / self.trials
        centre, scale = p + Z_95**2 / (2 * n), 1 + Z_95**2 / n
        margin = Z_95 * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n * n))
        interval = [round((centre - margin) / scale, 4), round((centre + margin) / scale, 4)]
        return {"successes": self.successes, "trials": n, "share": round(p, 4), "wilson_95": interval}


def all_cases(per_subject: int) -> list[Case]:
    """Return `per_subject` prompts for every subject, on backgrounds that rotate, each with its own seed."""
    phrases = [scene_tables()["backgrounds"][name]["phrase"] for name in BACKGROUNDS]
    cases = []
    for index in range(per_subject * len(SUBJECTS)):
        lap, subject = divmod(index, len(SUBJECTS))
        background = (5 * subject + 7 * lap + subject // len(BACKGROUNDS)) % len(BACKGROUNDS)
        cases.append(Case(describe(SUBJECTS[subject], phrases[background]), subject, background, 10_000 + index))
    return cases


def fast_pipeline(
    folder: Path, zero_rows: int, large: Path | None = None, device: str = "cpu"
) -> StableDiffusion3Pipeline:
    """Load the exported pipeline; one zero row counts for `zero_rows`, which changes nothing but the time.

    Args:
        folder: the exported model.
        zero_rows: of text.
        large: what makes the model of 256 x 256 of it, None for the one of the folder.
        device: to sample on.
    """
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, torch_dtype=torch.float32, text_encoder_3=None, tokenizer_3=None
    )
    if large is not None:
        enlarge_pipeline(pipeline, large)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    attention = CountedRowAttention()
    size = pipeline.transformer.config.sample_size
    num_tokens = size * size // 4 + pipeline.tokenizer_max_length + 1
    attention.set_count(zero_rows, num_tokens, pipeline.transformer.proj_out.weight)
    pipeline.transformer.set_attn_processor(attention)
    return pipeline


@torch.no_grad()
def sample(pipeline: StableDiffusion3Pipeline, cases: list[Case], steps: int, guidance: float) -> Tensor:
    """Sample one picture per case: float32 [N, 3, H, W] in -1..1."""
    size = 4 * pipeline.transformer.config.sample_size
    with mixed_precision(str(pipeline.device.type)):
        pictures = pipeline(
            [case.prompt for case in cases],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=size,
            width=size,
            max_sequence_length=1,
            generator=[torch.Generator().manual_seed(case.seed) for case in cases],
            output_type="pt",
        ).images
    return pictures.float().mul(2).sub(1).cpu()


@torch.no_grad()
def classify(classifier: SceneClassifier, small: Tensor) -> dict[str, Tensor]:
    """Return the predicted subjects and backgrounds [N] and the features [N, D] of uint8 pictures [N, 3, S, S]."""
    subjects, backgrounds, features = [], [], []
    for batch in small.split(256):
        pictures = batch.float().div(127.5).sub(1)
        logits = classifier(pictures)
        subjects.append(logits.subject.argmax(1))
        backgrounds.append(logits.background.argmax(1))
        features.append(classifier.features(pictures))
    return {"subject": torch.cat(subjects), "background": torch.cat(backgrounds), "features": torch.cat(features)}


def sample_all(
    pipeline: StableDiffusion3Pipeline, cases: list[Case], steps: int, guidance: float, batch: int, scratch: Path
) -> Tensor:
    """Sample all cases, shared among the processes; returns uint8 [N, 3, H, W] in each of them."""
    ranks = Ranks.join()
    mine = cases[ranks.rank :: ranks.count]
    pictures = []
    for start in tqdm(range(0, len(mine), batch), desc=f"guidance {guidance}", disable=not ranks.is_first):
        sampled = sample(pipeline, mine[start : start + batch], steps, guidance)
        pictures.append(sampled.add(1).mul(127.5).round().clamp(0, 255).byte())
    save_atomically(torch.cat(pictures), scratch / f"samples_{ranks.rank}.pt")
    ranks.wait()
    parts = [torch.load(scratch / f"samples_{rank}.pt", weights_only=True) for rank in range(ranks.count)]
    whole = torch.empty(len(cases), *parts[0].shape[1:], dtype=torch.uint8)
    for rank, part in enumerate(parts):
        whole[rank :: ranks.count] = part
    ranks.wait()
    return whole


def save_reference(classifier: SceneClassifier, renderer: Renderer) -> None:
    """Ship the features of held-out renders, so that others need neither font nor renderer."""
    renders = np.stack([renderer.render(REFERENCE_SEED, i)[0] for i in range(NUM_REFERENCES)])
    save_file({"features": classify(classifier, halve(to_unit(renders)))["features"].half().contiguous()}, RENDERS)
    RENDERS.chmod(0o644)


def score(pictures: Tensor, cases: list[Case], font: Path, is_reference_kept: bool = False) -> dict[str, Any]:
    """Return the accuracies, the Frechet distances and the subjects that fail most.

    Args:
        pictures: uint8 [N, 3, S, S], one per case.
        cases: what they should show.
        font: for the renders they are compared with.
        is_reference_kept: leave the features of renders that the package ships as they are.
    """
    classifier = load_classifier()
    found = classify(classifier, halve(pictures.float().div(127.5).sub(1)))
    subjects = torch.tensor([case.subject for case in cases])
    backgrounds = torch.tensor([case.background for case in cases])
    right_subject, right_background = found["subject"] == subjects, found["background"] == backgrounds
    renderer = Renderer(pictures.shape[-1], font)
    if not is_reference_kept:
        save_reference(classifier, renderer)
    renders = np.stack([renderer.render(REFERENCE_SEED, i)[0] for i in range(NUM_REFERENCES + len(cases))])
    real = classify(classifier, halve(to_unit(renders)))["features"]
    failures: dict[str, list[str]] = {}
    for case, is_right, guess in zip(cases, right_subject.tolist(), found["subject"].tolist(), strict=True):
        if not is_right:
            failures.setdefault(SUBJECTS[case.subject], []).append(SUBJECTS[guess])
    return {
        "subject": Share(int(right_subject.sum()), len(cases)).as_dict(),
        "background": Share(int(right_background.sum()), len(cases)).as_dict(),
        "both": Share(int((right_subject & right_background).sum()), len(cases)).as_dict(),
        "frechet_distance": round(frechet_to(found["features"], real[:NUM_REFERENCES]).value, 3),
        "frechet_distance_of_renders": round(frechet_to(real[NUM_REFERENCES:], real[:NUM_REFERENCES]).value, 3),
        "mistaken_subjects": dict(sorted(failures.items(), key=lambda item: -len(item[1]))),
    }


def draw_sheet(pictures: Tensor, cases: list[Case], path: Path, columns: int = 10, rows: int = 6) -> None:
    """Draw the first pictures, one of every subject in turn, with their prompts below."""
    side, text_height = pictures.shape[-1], 14
    stride = max(1, len(SUBJECTS) // (columns * rows))
    chosen = list(range(0, len(cases), stride))[: columns * rows]
    sheet = Image.new("RGB", (columns * (side + 6), rows * (side + 6 + text_height)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        x, y = place % columns * (side + 6) + 3, place // columns * (side + 6 + text_height) + 3
        sheet.paste(Image.fromarray(pictures[index].permute(1, 2, 0).numpy()), (x, y))
        pen.text((x, y + side + 1), cases[index].prompt, fill="black", font_size=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256).save(path, optimize=True)


def provenance(device: str = "cpu") -> dict[str, Any]:
    """Return commit, hardware (of this device), versions and date."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    names = ("torch", "diffusers", "transformers", "numpy", "pillow")
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names_found = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = f"{names_found[0]}, {len(names_found)} logical cores" if names_found else cpu
    return {
        "commit": commit or None,
        "hardware": torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else cpu,
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def main(command_line: list[str] | None = None) -> None:
    """Sample, measure, and write the JSON and the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--folder", type=Path, default=model_folder(), help="the exported model")
    parser.add_argument("--font", type=Path, default=DEFAULT_FONT, help="NotoColorEmoji.ttf")
    parser.add_argument("--device", default="cpu", help="to sample on")
    parser.add_argument("--guidance", type=float, default=GUIDANCE_SCALE)
    parser.add_argument(
        "--max-sequence-length", type=int, default=MAX_SEQUENCE_LENGTH, help="rows of zeros that stand for T5's"
    )
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--per-subject", type=int, default=4, help="samples per subject")
    parser.add_argument("--first", type=int, default=None, help="use only the first cases, to compare settings")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=EMBEDDED_SIZES[0], choices=EMBEDDED_SIZES)
    parser.add_argument("--json", type=Path, help="benchmarks/results/embedded_model.json, or embedded_model_256.json")
    parser.add_argument("--sheet", type=Path, help="docs/images/embedded_samples.png, or embedded_samples_256.png")
    a = parser.parse_args(command_line)
    started = time.monotonic()
    cases = all_cases(a.per_subject)[: a.first]
    is_large = a.size == LARGE_SIZE
    pipeline = fast_pipeline(a.folder, a.max_sequence_length, LARGE_WEIGHTS if is_large else None, a.device)
    pictures = sample_all(pipeline, cases, a.steps, a.guidance, a.batch, a.out)
    if not Ranks.join().is_first:
        return
    suffix = f"_{a.size}" if is_large else ""
    result = score(pictures, cases, a.font, is_reference_kept=is_large)
    config = {"steps": a.steps, "guidance_scale": a.guidance, "size": pictures.shape[-1], "samples": len(cases)}
    config["max_sequence_length"] = a.max_sequence_length
    record = {"schema": "ras-dit/embedded-model/1", **provenance(a.device), "config": config, "results": result}
    classifier = a.out / "classifier_result.json"
    if classifier.is_file():
        record["classifier"] = json.loads(classifier.read_text())
    record["sampling_seconds"] = round(time.monotonic() - started, 1)
    write_json(record, a.json or Path(f"benchmarks/results/embedded_model{suffix}.json"))
    sheet = a.sheet or Path(f"docs/images/embedded_samples{suffix}.png")
    draw_sheet(pictures, cases, sheet, *((5, 4) if is_large else (10, 6)))
    print(json.dumps({key: result[key] for key in ("subject", "background", "both", "frechet_distance")}))


if __name__ == "__main__":
    main()
