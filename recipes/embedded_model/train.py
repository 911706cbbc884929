"""Stage 3: the text encoders, then the diffusion transformer on encoded scenes.

Rectified flow as in Stable Diffusion 3: x_s = (1 - s) x_0 + s e, target velocity e - x_0, timestep 1000 s.
The learning rate falls to zero at the end of the time (or step) budget.
"""

from __future__ import annotations

import copy
import functools
import math
import random
import string
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from recipes.embedded_model.checkpoint import (
    Ranks,
    Stopwatch,
    mixed_precision,
    save_atomically,
    update_average,
    write_json,
)
from recipes.embedded_model.loop import TimedTraining
from recipes.embedded_model.model import ZERO_ROWS, PromptToVelocity, TrainSettings
from recipes.embedded_model.scenes import BACKGROUNDS, SUBJECTS, TABLES, Scene, caption, draw_scene
from recipes.embedded_model.text import LabelledPrompt, teach_text_encoders

LABEL_CLASSES = (len(SUBJECTS), len(BACKGROUNDS), 3, 3, 3)


class Optimizers:
    """Muon for the matrices of the blocks, AdamW for everything else that is trained, one learning rate for both."""

    def __init__(self, model: PromptToVelocity, settings: TrainSettings) -> None:
        matrices, others = [], []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            is_matrix = "transformer_blocks" in name and parameter.ndim == 2 and ".linear." not in name
            (matrices if is_matrix else others).append(parameter)
        decay = settings.weight_decay
        self.factors = (settings.muon_factor, 1.0)
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=0.0, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=decay),
        ]

    def step(self, learning_rate: float) -> None:
        """Take a step with this learning rate and clear the gradients."""
        for part, factor in zip(self.parts, self.factors, strict=True):
            for group in part.param_groups:
                group["lr"] = factor * learning_rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the state of both."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore the state of both."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


@dataclass(frozen=True)
class EncodedScenes:
    """The training set.

    Attributes:
        latents: scaled latents, float16 [N, C, H, W].
        attributes: scene attributes, int16 [N, 5].
    """

    latents: Tensor
    attributes: np.ndarray


@dataclass(frozen=True)
class Batch:
    """One step's data: latents [B, C, H, W], noise like it, sigma [B], prompts, and the count of zero rows."""

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    prompts: list[str]
    zero_rows: int


def draw_batch(data: EncodedScenes, draw: int, settings: TrainSettings) -> Batch:
    """Draw batch number `draw`; the seed and the number decide everything, so resuming needs no generator state."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + draw)
    rng = random.Random(settings.seed * 1_000_003 + draw)
    chosen = torch.randint(len(data.latents), (settings.batch,), generator=generator)
    latents = data.latents[chosen].float()
    sigma = torch.sigmoid(torch.randn(settings.batch, generator=generator) + settings.logit_mean)
    prompts = [word_prompt(Scene.from_array(data.attributes[i]), rng, settings) for i in chosen.tolist()]
    zero_rows = ZERO_ROWS if rng.random() < 0.25 else round(math.exp(rng.uniform(0, math.log(ZERO_ROWS))))
    return Batch(latents, torch.randn(latents.shape, generator=generator), sigma, prompts, zero_rows)


def word_prompt(scene: Scene, rng: random.Random, settings: TrainSettings) -> str:
    """Word one prompt: usually a caption, sometimes one with a made-up word, sometimes nothing."""
    if rng.random() < settings.caption_dropout:
        return ""
    text = caption(scene, rng)
    if rng.random() < settings.noise_words:
        words = text.split()
        words.insert(rng.randrange(len(words)), "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 4))))
        text = " ".join(words)
    return text


def draw_labelled_prompt(rng: random.Random, settings: TrainSettings) -> LabelledPrompt:
    """Draw a prompt of a random scene with what it says: subject, background, size, and place across and down."""
    scene = draw_scene(np.random.default_rng(rng.getrandbits(32)))
    text = word_prompt(scene, rng, settings)
    if not text:
        return LabelledPrompt(text, (-1,) * 5, LABEL_CLASSES)
    table = TABLES["backgrounds"][BACKGROUNDS[scene.background]]
    says_background = text.endswith(table["phrase"]) or table["word"] in text.split()
    size = 0 if {"small", "little"} & set(text.split()) else 1 if {"big", "large"} & set(text.split()) else 2
    across = 0 if "on the left" in text else 1 if "on the right" in text else 2
    down = 0 if "at the top" in text else 1 if "at the bottom" in text else 2
    background = scene.background if says_background else -1
    return LabelledPrompt(text, (scene.subject, background, size, across, down), LABEL_CLASSES)


def flow_loss(model: Callable[..., Tensor], batch: Batch, device: str) -> Tensor:
    """Return the per-sample flow-matching loss [B]."""
    latents, noise, sigma = (t.to(device) for t in (batch.latents, batch.noise, batch.sigma))
    s = sigma[:, None, None, None]
    with mixed_precision(device):
        velocity = model((1 - s) * latents + s * noise, sigma, batch.prompts, batch.zero_rows)
    return (velocity.float() - (noise - latents)).square().flatten(1).mean(1)


def learning_rate(step: int, done: float, settings: TrainSettings) -> float:
    """Return the learning rate after `step` steps with a share `done` of the budget gone."""
    warm = min((step + 1) / settings.warmup_steps, 1.0)
    return settings.learning_rate * warm * min(1.0, max(0.0, 1 - done) / (1 - settings.decay_from))


class Trainer(TimedTraining):
    """Owns the model, its average, the optimisers and the log; saves and resumes all of it.

    Args:
        out: folder of the run; holds `train.pt` and `train_log.json`.
        data: the training set.
        tokenizer: tokenizer of both text encoders.
        settings: options.
        device: where to train.
    """

    title = "transformer"

    def __init__(
        self, out: Path, data: EncodedScenes, tokenizer: CLIPTokenizer, settings: TrainSettings, device: str = "cpu"
    ) -> None:
        torch.manual_seed(settings.seed)
        self.out, self.data, self.settings, self.device = out, data, settings, device
        self.ranks = Ranks.join()
        self.model = PromptToVelocity(tokenizer, data.latents.shape[-1], settings, data.latents.shape[1])
        if not self.checkpoint.is_file() and settings.text_steps:
            draw = functools.partial(draw_labelled_prompt, settings=settings)
            teach_text_encoders(self.model.text, draw, settings.text_steps, seed=settings.seed)
        self.model.text.requires_grad_(False)
        self.model.text.zero_grad(set_to_none=True)  # what is left of teaching must not count in the clipped norm
        self.model.to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.model.transformer.set_attn_processor(self.model.attention)
        self.optimizers = Optimizers(self.model, settings)
        self.step, self.history, self.watch = 0, [], Stopwatch()
        self.notes: list[str] = []  # what the model card tells of the run
        self._losses: list[float] = []
        if self.checkpoint.is_file():
            self._load()
        if settings.compile_model:
            self.model.transformer.compile(dynamic=False)

    @property
    def checkpoint(self) -> Path:
        """Where the trainer's state lies."""
        return self.out / "train.pt"

    @property
    def done(self) -> float:
        """The share of the budget that is used."""
        settings = self.settings
        return self.step / settings.steps if settings.steps else self.watch.elapsed / (60 * settings.minutes)

    def take_step(self, done: float) -> float:
        """Train on one batch, with a share `done` of the budget gone, and return its loss."""
        settings = self.settings
        batch = draw_batch(self.data, self.step * self.ranks.count + self.ranks.rank, settings)
        loss = flow_loss(self.model, batch, self.device).mean()
        loss.backward()
        self.ranks.average_gradients(self.model)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizers.step(learning_rate(self.step, done, settings))
        decay = min(settings.average_decay, (self.step + 1) / (self.step + 10))
        update_average(self.average, self.model, decay)
        self.step += 1
        self.watch.tick()
        return loss.item()

    def advance(self, done: float) -> None:
        """See `TimedTraining`."""
        self._losses.append(self.take_step(done))

    def note(self) -> None:
        """See `TimedTraining`."""
        samples = self.step * self.settings.batch * self.ranks.count
        rate = (
            len(self._losses) * self.settings.batch * self.ranks.count / max(self.watch.elapsed - self._noted_at, 1e-9)
        )
        row = {"step": self.step, "samples": samples, "minutes": self.watch.elapsed / 60}
        self.history.append(row | {"loss": sum(self._losses) / len(self._losses), "samples_per_second": rate})
        self._losses = []

    @property
    def _noted_at(self) -> float:
        return 60 * self.history[-1]["minutes"] if self.history else 0.0

    def save(self) -> None:
        """Write the checkpoint and the log, atomically."""
        if not self.ranks.is_first:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        state = {"model": self.model.state_dict(), "average": self.average.state_dict(), "step": self.step}
        state |= {"optimizers": self.optimizers.state_dict(), "history": self.history, "losses": self._losses}
        state |= {
            "elapsed": self.watch.elapsed,
            "settings": asdict(self.settings),
            "saved": time.time(),
            "notes": self.notes,
        }
        save_atomically(state, self.checkpoint)
        log = {"settings": asdict(self.settings), "step": self.step, "minutes": self.watch.elapsed / 60}
        write_json(log | {"history": self.history, "notes": self.notes}, self.out / "train_log.json")

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        if state["optimizers"] is not None:
            self.optimizers.load_state_dict(state["optimizers"])
        self.step, self.history, self._losses = state["step"], state["history"], state["losses"]
        self.watch, self.notes = Stopwatch(state["elapsed"]), state.get("notes", [])
