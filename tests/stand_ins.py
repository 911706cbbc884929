"""Small or random networks in the form of published weights files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

MAX_WORDS = 8


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """Knows the small letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_WORDS)


def clip_folder(folder: Path) -> Path:
    """A CLIP model of pictures of 32 x 32 pixels, with its tokenizer and image processor."""
    tokenizer = tiny_tokenizer(folder)
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**width, "vocab_size": len(tokenizer), "max_position_embeddings": MAX_WORDS, **special}
    vision = {**width, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def inception_file(path: Path) -> Path:
    """Random weights for torch-fidelity's InceptionV3, the classifier that FID does not need among them."""
    from ras_dit.arena.networks import Inception

    torch.manual_seed(0)
    weights = Inception().layers.state_dict()
    for name, tensor in weights.items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(tensor)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
    torch.save({**weights, "fc.weight": torch.randn(1008, 2048), "fc.bias": torch.randn(1008)}, path)
    return path


def lpips_file(path: Path, heads: str = "alex") -> Path:
    """Random weights in torchvision's form, ``vgg`` or ``alex``, with a layer that LPIPS does not need."""
    from ras_dit.arena.networks import BACKBONES, LPIPS

    torch.manual_seed(0)
    (backbone,) = (backbone for backbone in BACKBONES if backbone.heads == heads)
    weights = LPIPS(backbone).features.state_dict()
    torch.save(
        {f"features.{name}": tensor for name, tensor in weights.items()} | {"classifier.6.bias": torch.zeros(9)}, path
    )
    return path
