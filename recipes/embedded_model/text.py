"""Tokenizer and text encoders: words in, the conditioning of Stable Diffusion 3 out.

The embeddings are laid out as in `StableDiffusion3Pipeline.encode_prompt` without a T5: the penultimate
hidden states of two CLIP encoders side by side, then rows of zeros where a T5's would be. All zero rows
are alike, stay alike in every block, and so act as one key counted `num_zero_rows` times; training keeps
one of them and adds log(num_zero_rows) to its attention logit (see `model.CountedRowAttention`).
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

MAX_WORDS = 16  # tokens of a prompt, start and end included
WORD_END = "</w>"
WORD_STD = 0.4  # of the first embeddings of known words
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """Return the 256 printable stand-ins of bytes that byte-level BPE works on (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(rest))]


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Learn byte-pair merges until each of `words` is a single token."""
    splits = [[*word[:-1], word[-1] + WORD_END] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for split in splits for pair in itertools.pairwise(split)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        splits = [_merge(split, best) for split in splits]
    return merges


def _merge(split: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    index = 0
    while index < len(split):
        if tuple(split[index : index + 2]) == pair:
            merged.append(pair[0] + pair[1])
            index += 2
        else:
            merged.append(split[index])
            index += 1
    return merged


def write_tokenizer(folder: Path, words: Sequence[str]) -> CLIPTokenizer:
    """Write a CLIPTokenizer in which every word of `words` is one token and any other text falls into bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(words)
    letters = byte_letters()
    tokens = [*letters, *(letter + WORD_END for letter in letters), *(a + b for a, b in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_WORDS)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: CLIPTokenizer, width: int = 128) -> CLIPTextModelWithProjection:
    """Build one untrained encoder of two layers; its penultimate state is the first layer's output."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=MAX_WORDS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


@torch.no_grad()
def tell_words_apart(encoder: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer, words: Sequence[str]) -> None:
    """Start the embeddings of `words` at WORD_STD and leave those of all other tokens small.

    CLIP's usual start of 0.02 drowns beside positions and biases: 500 steps in, subjects were still ignored.
    """
    known = sorted({tokenizer(word).input_ids[1] for word in words} | {tokenizer.bos_token_id, tokenizer.eos_token_id})
    table = encoder.get_input_embeddings().weight
    table[known] *= WORD_STD / table[known].std()


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt, the labels it implies (-1: not said), and how many values each label can take."""

    prompt: str
    labels: tuple[int, ...]
    num_classes: tuple[int, ...]


@dataclass(frozen=True)
class TextConditioning:
    """What the transformer is told.

    Attributes:
        tokens: [B, MAX_WORDS + num_zero_rows, D] embeddings of the words, then the zero rows.
        pooled: [B, D] pooled projections.
    """

    tokens: Tensor
    pooled: Tensor


class TextEncoders(nn.Module):
    """The two encoders as one trainable module.

    Args:
        tokenizer: the tokenizer both share.
        width: width of each; the conditioning is twice as wide.
        words: the words that captions use.
    """

    def __init__(self, tokenizer: CLIPTokenizer, width: int = 128, words: Sequence[str] = ()) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.first = build_text_encoder(tokenizer, width)
        self.second = build_text_encoder(tokenizer, width)
        for encoder in (self.first, self.second):
            tell_words_apart(encoder, tokenizer, words)

    def forward(self, prompts: list[str], num_zero_rows: int = 1) -> TextConditioning:
        """Encode prompts as the pipeline does, with `num_zero_rows` rows in the T5's place."""
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=MAX_WORDS, truncation=True, return_tensors="pt"
        ).input_ids.to(next(self.parameters()).device)
        outputs = [encoder(ids, output_hidden_states=True) for encoder in (self.first, self.second)]
        words = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)  # [B, MAX_WORDS, D]
        zeros = words.new_zeros(words.shape[0], num_zero_rows, words.shape[2])
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)  # [B, D]
        return TextConditioning(torch.cat([words, zeros], dim=1), pooled)


def teach_text_encoders(
    encoders: TextEncoders, draw: Callable[[random.Random], LabelledPrompt], steps: int, batch: int = 128, seed: int = 0
) -> float:
    """Teach the pooled projections to name what a prompt says, with linear heads that are thrown away.

    A transformer trained from scratch uses backgrounds within minutes but for long ignores the subject, because its
    text encoders have no reason yet to pass it on. After this they do.

    Args:
        encoders: trained in place.
        draw: draws a prompt and its labels; a label of -1 is not said by the prompt.
        steps: optimiser steps.
        batch: prompts per step.
        seed: of prompts and heads.

    Returns:
        The mean loss of the last tenth of the steps.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    width = encoders.first.config.projection_dim + encoders.second.config.projection_dim
    heads = nn.ModuleList(nn.Linear(width, classes) for classes in draw(rng).num_classes)
    parameters = [*encoders.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    losses = []
    for _ in tqdm(range(steps), desc="text", mininterval=5):
        drawn = [draw(rng) for _ in range(batch)]
        pooled = encoders([one.prompt for one in drawn]).pooled
        labels = torch.tensor([one.labels for one in drawn]).T  # [heads, B]
        pairs = zip(heads, labels, strict=True)
        loss = sum(F.cross_entropy(head(pooled), label, ignore_index=-1) for head, label in pairs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    scale_pooled(encoders, [draw(rng).prompt for _ in range(256)])
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


@torch.no_grad()
def scale_pooled(encoders: TextEncoders, prompts: list[str]) -> None:
    """Scale the projections so that the pooled values of `prompts` have unit standard deviation."""
    std = encoders(prompts).pooled.std()
    for encoder in (encoders.first, encoders.second):
        encoder.text_projection.weight /= std
