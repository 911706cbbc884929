"""Stage 0, only to go on from a shipped model: `python -m recipes.embedded_model.start --out runs/embedded`.

Turns a model folder and the record of its training back into a run that the other stages go on with. The weights are
the shipped ones (bfloat16 averages) and the optimisers start anew, so the loss is a little higher for some steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

from ras_dit.embedded import model_folder, training_record
from recipes.embedded_model.checkpoint import save_atomically, write_json
from recipes.embedded_model.model import PromptToVelocity, TrainSettings


def load_weights(pipeline: StableDiffusion3Pipeline, settings: TrainSettings) -> PromptToVelocity:
    """Return the trainable model with the pipeline's weights; its positional table is computed, not learned."""
    transformer = pipeline.transformer
    model = PromptToVelocity(
        pipeline.tokenizer, transformer.config.sample_size, settings, transformer.config.in_channels
    )
    weights = {name: value for name, value in transformer.state_dict().items() if name != "pos_embed.pos_embed"}
    missing, unexpected = model.transformer.load_state_dict(weights, strict=False)
    if missing != ["pos_embed.pos_embed"] or unexpected:
        raise ValueError(f"the settings do not fit the model: missing {missing}, unexpected {unexpected}")
    model.text.first.load_state_dict(pipeline.text_encoder.state_dict())
    model.text.second.load_state_dict(pipeline.text_encoder_2.state_dict())
    return model


def start_run(out: Path, folder: Path, record: Path) -> TrainSettings:
    """Write `vae/`, `tokenizer/`, `vae_result.json` and `train.pt` of a run that goes on from `folder`.

    Args:
        out: folder of the new run.
        folder: the model, as `export` writes it.
        record: the record of its training, as `card` writes it.

    Returns:
        The settings it was trained with.

    Raises:
        FileExistsError: `out` holds a run already.
    """
    if (out / "train.pt").exists():
        raise FileExistsError(f"{out} holds a run already; choose another folder or go on with it")
    trained = json.loads(record.read_text(encoding="utf-8"))
    log = trained["log"]
    settings = TrainSettings(**log["settings"])
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        folder, torch_dtype=torch.float32, text_encoder_3=None, tokenizer_3=None
    )
    model = load_weights(pipeline, settings)
    pipeline.vae.save_pretrained(out / "vae")
    shutil.copytree(folder / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    write_json(trained["vae"], out / "vae_result.json")
    state = {"model": model.state_dict(), "average": copy.deepcopy(model.state_dict()), "optimizers": None}
    state |= {"step": log["step"], "history": log["history"], "losses": [], "elapsed": 60 * log["minutes"]}
    save_atomically(state | {"settings": log["settings"], "notes": log["notes"]}, out / "train.pt")
    return settings


def main(command_line: list[str] | None = None) -> None:
    """Start a run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the new run")
    parser.add_argument("--folder", type=Path, default=model_folder(), help="the model to go on from")
    parser.add_argument("--record", type=Path, default=training_record(), help="the record of its training")
    a = parser.parse_args(command_line)
    settings = start_run(a.out, a.folder, a.record)
    print(f"{a.out}: goes on from {a.folder} (width {settings.width}, {settings.layers} layers)")


if __name__ == "__main__":
    main()
