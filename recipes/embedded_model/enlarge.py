"""Stage 8: the shipped model at 256 x 256: `torchrun --nproc-per-node 2 -m recipes.embedded_model.enlarge --out RUN`.

The picture keeps its positional coordinates and gets twice as many tokens a side between them, so composition is right
from the start; what has to be learned is detail at twice the scale. The weights of the image stream are trained on
whole pictures and, with a quarter of the tokens, on windows of them (256 at their own coordinates). What changed is
shipped as the difference to the weights of 128 x 128, in 4 bits.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from torch import Tensor, nn

from ras_dit.embedded import model_folder, training_record
from ras_dit.embedded.large import (
    LARGE_RECORD,
    LARGE_SIZE,
    LARGE_WEIGHTS,
    large_positions,
    load_difference,
    save_difference,
)
from recipes.embedded_model.checkpoint import (
    Ranks,
    Stopwatch,
    save_atomically,
    update_average,
    write_json,
)
from recipes.embedded_model.encode import encode_scenes
from recipes.embedded_model.loop import TimedTraining
from recipes.embedded_model.model import PromptToVelocity, TrainSettings
from recipes.embedded_model.scenes import DEFAULT_FONT
from recipes.embedded_model.start import load_weights
from recipes.embedded_model.train import Batch, EncodedScenes, draw_batch, flow_loss, learning_rate

TRAINED = ("attn.to_", "attn.norm_q.", "attn.norm_k.", "ff.", "norm1.", "pos_embed.proj.", "proj_out.", "norm_out.")
"""Names of parameters of the image stream; the text stream stays as it is."""
WINDOW = 16  # tokens per side


@dataclass(frozen=True)
class EnlargeSettings:
    """Options of the stage.

    Args:
        minutes: training time.
        whole_batch: whole pictures per step and process.
        window_batch: windows per step and process.
        windows_per_whole: steps on windows for every step on whole pictures.
        whole_logit_mean: mean of the logit of the noise level of whole pictures; its std is 1.
        window_logit_mean: the same of windows: lower, because it is detail that they teach.
        learning_rate: peak learning rate of AdamW.
        decay_from: share of the time after which the learning rate falls to zero.
    """

    minutes: float = 60.0
    whole_batch: int = 2
    window_batch: int = 8
    windows_per_whole: int = 1
    whole_logit_mean: float = 0.4
    window_logit_mean: float = -0.2
    learning_rate: float = 6e-4
    decay_from: float = 0.4
    average_decay: float = 0.99
    seed: int = 256
    compile_model: bool = False


class PlacedPatches(nn.Module):
    """The transformer's patch embedding with positions that can be of any part of the picture.

    Args:
        projection: the patch embedding's convolution.
    """

    def __init__(self, projection: nn.Conv2d) -> None:
        super().__init__()
        self.proj = projection
        self.positions: Tensor | None = None  # [B or 1, N, D]

    def forward(self, latents: Tensor) -> Tensor:
        """Embed latents [B, C, H, W] as tokens [B, N, D]."""
        tokens = self.proj(latents).flatten(2).transpose(1, 2)
        assert self.positions is not None
        return tokens + self.positions.to(tokens.dtype)


def cut_windows(batch: Batch, positions: Tensor, generator: torch.Generator) -> tuple[Batch, Tensor]:
    """Cut a window of 16 x 16 tokens out of each picture.

    Args:
        batch: whole pictures, latents [B, C, H, W] with 2 x 2 latent pixels a token.
        positions: embeddings [S, S, D] of the whole picture's tokens.
        generator: decides where.

    Returns:
        The batch of windows [B, C, 32, 32], and their embeddings [B, 256, D].
    """
    free = positions.shape[0] - WINDOW + 1
    corners = torch.randint(free, (len(batch.latents), 2), generator=generator).tolist()
    cut = functools.partial(_cut, corners=corners)
    windows = replace(batch, latents=cut(batch.latents), noise=cut(batch.noise))
    places = [positions[r : r + WINDOW, c : c + WINDOW].flatten(0, 1) for r, c in corners]
    return windows, torch.stack(places)


def _cut(pictures: Tensor, corners: list[list[int]]) -> Tensor:
    side = 2 * WINDOW
    return torch.stack(
        [p[:, 2 * r : 2 * r + side, 2 * c : 2 * c + side] for p, (r, c) in zip(pictures, corners, strict=True)]
    )


class Enlarger(TimedTraining):
    """Trains the image stream of the shipped model at 256 x 256; saves and resumes.

    Args:
        out: folder of the run; holds `enlarge.pt` and `enlarge_log.json`.
        data: the training set, latents [N, 8, 64, 64].
        model: the model with the weights of 128 x 128.
        settings: options.
        device: where to train.
    """

    title = "256 x 256"
    note_every = 25

    def __init__(
        self, out: Path, data: EncodedScenes, model: PromptToVelocity, settings: EnlargeSettings, device: str = "cpu"
    ) -> None:
        self.out, self.data, self.settings, self.device = out, data, settings, device
        self.ranks = Ranks.join()
        self.model = model
        width = model.transformer.inner_dim
        self.positions = large_positions(width).unflatten(0, (2 * WINDOW, 2 * WINDOW)).to(device)
        model.transformer.pos_embed = PlacedPatches(model.transformer.pos_embed.proj)
        model.requires_grad_(False)
        for name, parameter in model.transformer.named_parameters():
            parameter.requires_grad_(any(part in name for part in TRAINED) and "context" not in name)
        model.to(device)
        self.average = copy.deepcopy(model).requires_grad_(False)
        model.transformer.set_attn_processor(model.attention)
        self.rate = TrainSettings(learning_rate=settings.learning_rate, decay_from=settings.decay_from)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
        self.step, self.history, self.watch = 0, [], Stopwatch()
        self._losses: dict[str, list[float]] = {"whole": [], "window": []}
        if self.checkpoint.is_file():
            self._load()
        if settings.compile_model:
            model.transformer.compile(dynamic=False)

    @property
    def checkpoint(self) -> Path:
        """Where the state lies."""
        return self.out / "enlarge.pt"

    @property
    def done(self) -> float:
        """The share of the time that is used."""
        return self.watch.elapsed / (60 * self.settings.minutes)

    def draw(self) -> tuple[str, Batch]:
        """Draw this step's batch and set the positions of its tokens."""
        settings, number = self.settings, self.step * self.ranks.count + self.ranks.rank
        is_whole = self.step % (settings.windows_per_whole + 1) == 0
        size, mean = (
            (settings.whole_batch, settings.whole_logit_mean)
            if is_whole
            else (settings.window_batch, settings.window_logit_mean)
        )
        batch = draw_batch(self.data, number, replace(self.rate, batch=size, logit_mean=mean, seed=settings.seed))
        placed = self.model.transformer.pos_embed
        if is_whole:
            placed.positions = self.positions.flatten(0, 1)[None].expand(size, -1, -1).contiguous()
            return "whole", batch
        windows, placed.positions = cut_windows(batch, self.positions, torch.Generator().manual_seed(number))
        return "window", windows

    def take_step(self, done: float) -> tuple[str, float]:
        """Train on one batch; returns its kind and loss."""
        kind, batch = self.draw()
        loss = flow_loss(self.model, batch, self.device).mean()
        loss.backward()
        self.ranks.average_gradients(self.model)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, done, self.rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        update_average(self.average, self.model, min(self.settings.average_decay, (self.step + 1) / (self.step + 10)))
        self.step += 1
        self.watch.tick()
        return kind, loss.item()

    def advance(self, done: float) -> None:
        """See `TimedTraining`."""
        kind, loss = self.take_step(done)
        self._losses[kind].append(loss)

    def note(self) -> None:
        """See `TimedTraining`."""
        means = {kind: sum(losses) / max(1, len(losses)) for kind, losses in self._losses.items()}
        self.history.append({"step": self.step, "minutes": self.watch.elapsed / 60} | means)
        self._losses = {"whole": [], "window": []}

    def save(self) -> None:
        """Write the state and the log, atomically."""
        if not self.ranks.is_first:
            return
        state = {"model": self.model.transformer.state_dict(), "average": self.average.transformer.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "step": self.step, "history": self.history}
        save_atomically(state | {"elapsed": self.watch.elapsed}, self.checkpoint)
        log = {"settings": asdict(self.settings), "step": self.step, "minutes": self.watch.elapsed / 60}
        per_round = self.settings.whole_batch, self.settings.windows_per_whole * self.settings.window_batch
        rounds = self.step / (self.settings.windows_per_whole + 1) * self.ranks.count
        log |= {"whole_pictures": round(rounds * per_round[0]), "windows": round(rounds * per_round[1])}
        write_json(log | {"scenes": len(self.data.latents), "history": self.history}, self.out / "enlarge_log.json")

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=False)
        self.model.transformer.load_state_dict(state["model"])
        self.average.transformer.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.history, self.watch = state["step"], state["history"], Stopwatch(state["elapsed"])


def export_difference(out: Path, pipeline: StableDiffusion3Pipeline, target: Path) -> int:
    """Write what the run in `out` changed of the pipeline's transformer; returns the size in bytes."""
    average = torch.load(out / "enlarge.pt", map_location="cpu", weights_only=False)["average"]
    old = pipeline.transformer.state_dict()
    changed = {name: value for name, value in average.items() if name in old and not torch.equal(value, old[name])}
    save_difference({name: old[name] for name in changed}, changed, target)
    return target.stat().st_size


@torch.no_grad()
def go_on_from_shipped(model: PromptToVelocity, out: Path) -> list[dict[str, Any]]:
    """Add the shipped difference to the weights of 128 x 128; returns the logs of what was trained before.

    A run keeps what it started from in `out/earlier.json`: once it is over, its result may lie where that was.
    """
    earlier = out / "earlier.json"
    if not earlier.is_file():
        Ranks.join().wait()
        if Ranks.join().is_first:
            begun = (out / "enlarge.pt").is_file() or not LARGE_WEIGHTS.is_file()
            record = {"sittings": []} if begun else json.loads(LARGE_RECORD.read_text(encoding="utf-8"))
            write_json(record, earlier)
        Ranks.join().wait()
    sittings: list[dict[str, Any]] = json.loads(earlier.read_text(encoding="utf-8"))["sittings"]
    if sittings and not (out / "enlarge.pt").is_file():
        parameters = dict(model.transformer.named_parameters())
        for name, difference in load_difference().items():
            parameters[name].add_(difference)
    return sittings


def main(command_line: list[str] | None = None) -> None:
    """Train and export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an interrupted run goes on in it")
    parser.add_argument("--font", type=Path, default=DEFAULT_FONT, help="NotoColorEmoji.ttf")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--scenes", type=int, default=4096, help="pictures that are rendered and encoded")
    parser.add_argument("--workers", type=int, default=0, help="processes that render")
    parser.add_argument("--minutes", type=float, default=EnlargeSettings.minutes)
    parser.add_argument("--whole-batch", type=int, default=EnlargeSettings.whole_batch)
    parser.add_argument("--window-batch", type=int, default=EnlargeSettings.window_batch)
    parser.add_argument("--learning-rate", type=float, default=EnlargeSettings.learning_rate)
    parser.add_argument("--compile", action="store_true", help="use torch.compile for the transformer")
    parser.add_argument("--fresh", action="store_true", help="start from 128 x 128, not from the shipped difference")
    parser.add_argument("--target", type=Path, default=LARGE_WEIGHTS, help="where the difference goes")
    a = parser.parse_args(command_line)
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        model_folder(), torch_dtype=torch.float32, text_encoder_3=None, tokenizer_3=None
    )
    trained = TrainSettings(**json.loads(training_record().read_text(encoding="utf-8"))["log"]["settings"])
    vae: AutoencoderKL = pipeline.vae
    if Ranks.join().is_first and not (a.out / "vae").exists():
        vae.save_pretrained(a.out / "vae")
    Ranks.join().wait()
    data = encode_scenes(a.out, LARGE_SIZE, a.scenes, a.device, a.font, a.workers)
    settings = EnlargeSettings(
        minutes=a.minutes,
        whole_batch=a.whole_batch,
        window_batch=a.window_batch,
        learning_rate=a.learning_rate,
        compile_model=a.compile,
    )
    model = load_weights(pipeline, trained)
    sittings = [] if a.fresh else go_on_from_shipped(model, a.out)
    if not Enlarger(a.out, data, model, settings, a.device).run():
        raise SystemExit("Interrupted; the same command goes on from here.")
    if Ranks.join().is_first:
        log = json.loads((a.out / "enlarge_log.json").read_text(encoding="utf-8"))
        write_json({"sittings": [*sittings, log]}, a.target.with_name(LARGE_RECORD.name))
        print(f"{a.target}: {export_difference(a.out, pipeline, a.target) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
