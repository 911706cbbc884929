"""Stage 4: put the averaged weights into a diffusers folder that the package ships."""

from __future__ import annotations

import argparse
import copy
import os
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTokenizer

from ras_dit.embedded import model_folder
from recipes.embedded_model.model import PromptToVelocity, TrainSettings

SHIFT = 3.0
SHARD_SIZE = "15MB"


def load_average(out: Path) -> PromptToVelocity:
    """Rebuild the averaged model of the checkpoint in `out`."""
    state = torch.load(out / "train.pt", map_location="cpu", weights_only=False)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    vae = AutoencoderKL.load_config(out / "vae")
    settings = TrainSettings(**state["settings"])
    model = PromptToVelocity(tokenizer, vae["sample_size"] // 4, settings, vae["latent_channels"])
    model.load_state_dict(state["average"])
    return model.eval()


def build_pipeline(out: Path) -> StableDiffusion3Pipeline:
    """Assemble the pipeline from the stages' results in `out`, in float32."""
    model = load_average(out)
    tokenizer = model.text.tokenizer
    return StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=AutoencoderKL.from_pretrained(out / "vae"),
        text_encoder=model.text.first,
        tokenizer=tokenizer,
        text_encoder_2=model.text.second,
        tokenizer_2=copy.deepcopy(tokenizer),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def crop_positions(transformer: SD3Transformer2DModel, side: int) -> None:
    """Keep the middle `side` x `side` of the positional table: pictures of up to that many tokens a side see the same.

    Args:
        transformer: changed in place.
        side: tokens per side that remain, at most what there is.
    """
    embed = transformer.pos_embed
    whole = embed.pos_embed_max_size
    start = (whole - side) // 2
    table = embed.pos_embed.unflatten(1, (whole, whole))[:, start : start + side, start : start + side]
    embed.register_buffer("pos_embed", table.flatten(1, 2).contiguous(), persistent=True)
    embed.pos_embed_max_size = side
    transformer.register_to_config(pos_embed_max_size=side)


def export(out: Path, folder: Path) -> int:
    """Write the pipeline to `folder`, replacing it in one go; returns its size in bytes.

    Transformer and autoencoder go in bfloat16. The text encoders stay in float32: loaded without a dtype,
    diffusers makes the former float32, while transformers keeps the type of the file.
    """
    pipeline = build_pipeline(out)
    crop_positions(pipeline.transformer, pipeline.transformer.config.sample_size)
    pipeline.transformer.to(torch.bfloat16)
    pipeline.vae.to(torch.bfloat16)
    scratch = folder.with_name(folder.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    pipeline.save_pretrained(scratch, max_shard_size=SHARD_SIZE)
    previous = folder.with_name(folder.name + ".old")
    if folder.exists():
        os.replace(folder, previous)
    os.replace(scratch, folder)
    shutil.rmtree(previous, ignore_errors=True)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(command_line: list[str] | None = None) -> None:
    """Export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--folder", type=Path, default=model_folder(), help="where the model goes")
    arguments = parser.parse_args(command_line)
    size = export(arguments.out, arguments.folder)
    print(f"{arguments.folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
