"""Tokenizer and text encoders: words in, the conditioning of Stable Diffusion 3 out.

The embeddings are laid out as in `StableDiffusion3Pipeline.encode_prompt` without a T5: the penultimate
hidden states of two CLIP encoders side by side, then rows of zeros where a T5's would be. All zero rows
are alike, stay alike in every block, and so act as one key counted `num_zero_rows` times; training keeps
one of them and adds log(num_zero_rows) to its attention logit (see `train.CountedRowAttention`).
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

MAX_WORDS = 16  # tokens of a prompt, start and end included
WORD_END = "</w>"
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
    """

    def __init__(self, tokenizer: CLIPTokenizer, width: int = 128) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.first = build_text_encoder(tokenizer, width)
        self.second = build_text_encoder(tokenizer, width)

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
