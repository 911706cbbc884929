"""The trainable model: text encoders and transformer, with an attention that counts one zero row for many."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTokenizer

from recipes.embedded_model.scenes import every_word
from recipes.embedded_model.text import TextEncoders

ZERO_ROWS = 256  # the pipeline's default max_sequence_length


@dataclass(frozen=True)
class TrainSettings:
    """Options of the transformer stage.

    Args:
        minutes: training time; ignored when `steps` is given.
        steps: number of steps, or None to train for `minutes`.
        batch: samples per step and process.
        width: channels of the transformer, a multiple of 64.
        layers: number of joint blocks.
        text_width: width of each text encoder.
        text_steps: steps in which the text encoders learn to name things before the joint training.
        learning_rate: peak learning rate of AdamW.
        muon_factor: Muon's learning rate (matched to AdamW's RMS) over AdamW's.
        warmup_steps: steps of linear warm-up.
        decay_from: share of the budget after which the learning rate falls linearly to zero.
        caption_dropout: share of empty prompts, for guidance.
        noise_words: share of prompts with a made-up word, so that unknown words do no harm.
        logit_mean: mean of the logit of the noise level s; its std is 1.
        average_decay: EMA decay per step.
        compile_model: use torch.compile.
    """

    minutes: float = 75.0
    steps: int | None = None
    batch: int = 16
    width: int = 256
    layers: int = 7
    text_width: int = 128
    text_steps: int = 800
    learning_rate: float = 1.5e-3
    muon_factor: float = 1.33
    weight_decay: float = 0.01
    warmup_steps: int = 60
    decay_from: float = 0.6
    caption_dropout: float = 0.1
    noise_words: float = 0.03
    logit_mean: float = 0.6
    average_decay: float = 0.99
    seed: int = 0
    compile_model: bool = False


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention of [B, heads, N, D] with an additive bias [1, 1, 1, N].

    On a CPU the backward pass of the plain formula, compiled, takes two thirds of the fused kernel's time.
    """
    if query.device.type != "cpu" or bias is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    logits = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5 + bias
    return logits.softmax(-1).to(query.dtype) @ value


class CountedRowAttention:
    """SD3's joint attention in which the last text row counts `count` times: log(count) is added to its logit.

    Exactly what `count` identical rows would give, at the cost of one.
    """

    def __init__(self) -> None:
        self.bias: Tensor | None = None  # [1, 1, 1, N]

    def set_count(self, count: int, num_tokens: int, like: Tensor) -> None:
        """Set how often the last of `num_tokens` keys counts."""
        self.bias = torch.zeros(1, 1, 1, num_tokens, dtype=like.dtype, device=like.device)
        self.bias[..., -1] = math.log(count)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        assert encoder_hidden_states is not None
        num_image = hidden_states.shape[1]
        heads = (attn.heads, -1)
        q = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, heads).transpose(1, 2))  # [B, heads, N, 64]
        k = attn.norm_k(attn.to_k(hidden_states).unflatten(-1, heads).transpose(1, 2))
        v = attn.to_v(hidden_states).unflatten(-1, heads).transpose(1, 2)
        text_q = attn.norm_added_q(attn.add_q_proj(encoder_hidden_states).unflatten(-1, heads).transpose(1, 2))
        text_k = attn.norm_added_k(attn.add_k_proj(encoder_hidden_states).unflatten(-1, heads).transpose(1, 2))
        text_v = attn.add_v_proj(encoder_hidden_states).unflatten(-1, heads).transpose(1, 2)
        q, k, v = torch.cat([q, text_q], 2), torch.cat([k, text_k], 2), torch.cat([v, text_v], 2)
        bias = self.bias.to(v.dtype) if self.bias is not None else None
        mixed = attend(q.to(v.dtype), k.to(v.dtype), v, bias)
        mixed = mixed.transpose(1, 2).flatten(2)  # [B, N, D]
        text = mixed[:, num_image:]
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        return attn.to_out[0](mixed[:, :num_image]), text


class PromptToVelocity(nn.Module):
    """Transformer and text encoders as one module.

    Args:
        tokenizer: shared by both text encoders.
        latent_size: latent pixels per side of the training pictures.
        settings: width and depth.
        latent_channels: channels C of the latents.
    """

    def __init__(
        self, tokenizer: CLIPTokenizer, latent_size: int, settings: TrainSettings, latent_channels: int = 8
    ) -> None:
        super().__init__()
        self.text = TextEncoders(tokenizer, settings.text_width, every_word())
        self.transformer = SD3Transformer2DModel(
            sample_size=latent_size,
            patch_size=2,
            in_channels=latent_channels,
            out_channels=latent_channels,
            num_layers=settings.layers,
            attention_head_dim=64,
            num_attention_heads=settings.width // 64,
            joint_attention_dim=2 * settings.text_width,
            caption_projection_dim=settings.width,
            pooled_projection_dim=2 * settings.text_width,
            pos_embed_max_size=2 * latent_size,
            qk_norm="rms_norm",
        )
        start_as_identity(self.transformer)
        self.attention = CountedRowAttention()

    def forward(self, noisy: Tensor, sigma: Tensor, prompts: list[str], zero_rows: int = ZERO_ROWS) -> Tensor:
        """Predict the velocity of `noisy` [B, C, H, W] at `sigma` [B] as if `zero_rows` rows stood for the T5."""
        conditioning = self.text(prompts)
        num_image = noisy.shape[2] * noisy.shape[3] // 4
        self.attention.set_count(zero_rows, num_image + conditioning.tokens.shape[1], noisy)
        return self.transformer(
            hidden_states=noisy,
            timestep=1000 * sigma,
            encoder_hidden_states=conditioning.tokens,
            pooled_projections=conditioning.pooled,
            return_dict=False,
        )[0]


def start_as_identity(transformer: SD3Transformer2DModel) -> None:
    """Set the modulations and the output layer to zero, as DiT does, so that each block starts as the identity."""
    linears = [transformer.proj_out, transformer.norm_out.linear]
    for block in transformer.transformer_blocks:
        linears += [block.norm1.linear, block.norm1_context.linear]
    for linear in linears:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
