"""Run the whole recipe: `python -m recipes.embedded_model.run --out runs/embedded`.

Each stage is skipped when its result exists and goes on where it stopped otherwise. To train with several
processes (two of one thread each on a two-core CPU, one per GPU), start it with torchrun:
`torchrun --nproc-per-node 2 -m recipes.embedded_model.run --out runs/embedded`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import CLIPTokenizer

from recipes.embedded_model import card, classifier, evaluate, export
from recipes.embedded_model.checkpoint import Ranks
from recipes.embedded_model.encode import encode_scenes
from recipes.embedded_model.model import TrainSettings
from recipes.embedded_model.refine import RefineSettings, refine_decoder
from recipes.embedded_model.scenes import DEFAULT_FONT, every_word
from recipes.embedded_model.text import write_tokenizer
from recipes.embedded_model.train import Trainer
from recipes.embedded_model.vae import VAESettings, train_vae


@dataclass(frozen=True)
class RecipeOptions:
    """The recipe's options as they come from the command line."""

    out: Path
    font: Path
    device: str
    scenes: int
    workers: int
    is_finishing: bool
    refine_minutes: float
    vae: VAESettings
    train: TrainSettings


def parse_options(arguments: list[str] | None = None) -> RecipeOptions:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an interrupted run goes on in it")
    parser.add_argument("--font", type=Path, default=DEFAULT_FONT, help="NotoColorEmoji.ttf")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", type=int, default=128, help="pixels per side; 256 makes 1,024 image tokens")
    parser.add_argument("--scenes", type=int, default=24576, help="pictures that are rendered and encoded")
    parser.add_argument("--workers", type=int, default=0, help="processes that render, in the encoding stage")
    parser.add_argument("--vae-minutes", type=float, default=VAESettings.minutes)
    parser.add_argument("--vae-batch", type=int, default=VAESettings.batch, help="pictures per step and process")
    parser.add_argument("--refine-minutes", type=float, default=RefineSettings.minutes, help="more of the decoder")
    parser.add_argument("--minutes", type=float, default=TrainSettings.minutes, help="transformer training time")
    parser.add_argument("--batch", type=int, default=TrainSettings.batch, help="samples per step and process")
    parser.add_argument("--width", type=int, default=TrainSettings.width, help="transformer channels")
    parser.add_argument("--layers", type=int, default=TrainSettings.layers, help="transformer blocks")
    parser.add_argument("--compile", action="store_true", help="use torch.compile for the transformer")
    parser.add_argument("--finish", action="store_true", help="then export, measure and write the card")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args(arguments)
    return RecipeOptions(
        out=a.out,
        font=a.font,
        device=a.device,
        scenes=a.scenes,
        workers=a.workers,
        is_finishing=a.finish,
        refine_minutes=a.refine_minutes,
        vae=VAESettings(size=a.size, minutes=a.vae_minutes, batch=a.vae_batch, seed=a.seed),
        train=TrainSettings(
            minutes=a.minutes, batch=a.batch, width=a.width, layers=a.layers, seed=a.seed, compile_model=a.compile
        ),
    )


def run_training(options: RecipeOptions) -> bool:
    """Run or resume the training stages; returns False when interrupted."""
    ranks = Ranks.join()
    train_vae(options.out, options.vae, options.device, options.font)
    data = encode_scenes(options.out, options.vae.size, options.scenes, options.device, options.font, options.workers)
    if ranks.is_first:
        write_tokenizer(options.out / "tokenizer", every_word())
    ranks.wait()
    tokenizer = CLIPTokenizer.from_pretrained(options.out / "tokenizer")
    if not Trainer(options.out, data, tokenizer, options.train, options.device).run():
        return False
    refine_decoder(options.out, RefineSettings(minutes=options.refine_minutes), options.device, options.font)
    return True


def finish(options: RecipeOptions) -> None:
    """Export the model, train the classifier, measure the samples and write the card."""
    ranks = Ranks.join()
    common = ["--out", str(options.out)]
    if ranks.is_first:
        export.main(common)
        classifier.main([*common, "--font", str(options.font)])
    ranks.wait()
    evaluate.main([*common, "--font", str(options.font)])
    if ranks.is_first:
        card.main(common)


def main() -> int:
    """Run the recipe and return the exit code."""
    options = parse_options()
    try:
        finished = run_training(options)
        if finished and options.is_finishing:
            finish(options)
    except KeyboardInterrupt:
        finished = False
    if not finished:
        print("Interrupted; the same command goes on from here.", file=sys.stderr)
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main())
