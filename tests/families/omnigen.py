"""OmniGen."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, OmniGenPipeline, OmniGenTransformer2DModel
from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen
from PIL import Image

from families.case import FamilyCase, normals
from tiny import redraw, tiny_vae


def tokenizer(text: str) -> Any:
    """The last words of a text, by their length."""
    return SimpleNamespace(input_ids=[1] + [3 + min(len(word), 20) for word in text.split()[-7:]])


class Transforms:
    """What the processor takes of torchvision, which need not be installed."""

    Lambda = staticmethod(lambda change: change)
    ToTensor = staticmethod(lambda: lambda image: torch.tensor(np.array(image)).permute(2, 0, 1) / 255)
    Normalize = staticmethod(lambda mean, std, inplace: lambda image: (image - mean[0]) / std[0])

    @staticmethod
    def Compose(steps: list[Any]) -> Any:  # noqa: N802
        return lambda image: functools.reduce(lambda value, step: step(value), steps, image)


def build() -> Any:
    torch.manual_seed(0)
    transformer = OmniGenTransformer2DModel(
        in_channels=4,
        patch_size=2,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        num_layers=3,
        pad_token_id=2,
        vocab_size=32,
        rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.5] * 8},
        pos_embed_max_size=16,
        time_step_dim=16,
    ).eval()
    redraw(transformer, 0)
    if not hasattr(processor_omnigen, "transforms"):
        processor_omnigen.transforms = Transforms
        pipeline_omnigen.OmniGenMultiModalProcessor = processor_omnigen.OmniGenMultiModalProcessor
    pipe = OmniGenPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        vae=tiny_vae(4, 4),
        tokenizer=None,
    )
    pipe.multimodal_processor.text_tokenizer = tokenizer
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    arguments = {
        "prompt": ["a red fox in the snow", "two"][:batch],
        "latents": normals()(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_edit(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    pixels = (255 * normals(2)(16 * height, 16 * width, 3).sigmoid()).byte().numpy()
    prompt = ["make <img><|image_1|></img> red"] * batch
    return call(batch, height, width, prompt=prompt, input_images=[[Image.fromarray(pixels)]] * batch)


CASES = [FamilyCase("omnigen", build, call), FamilyCase("omnigen-edit", build, call_edit)]
