"""`ras-dit generate`: pictures or videos from prompts, resumable."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ras_dit.cli import options
from ras_dit.config import RASConfig
from ras_dit.files import FRAMES_PER_SECOND

if TYPE_CHECKING:
    from ras_dit.cli.pictures import Picture


@dataclass(frozen=True)
class Batch:
    """What the pictures of one command share."""

    model: str
    config: RASConfig | None
    dtype: str
    folder: Path
    saves_trace: bool
    fps: int

    def path(self, picture: Picture) -> Path:
        """The picture's file: its name holds a digest of everything asked for, so the same request is the same file."""
        config = self.config and self.config.to_dict()
        request: list[Any] = [picture.to_dict(), self.model, config, self.dtype]
        if self.fps != FRAMES_PER_SECOND:  # as it is in the names of files that were made without a word of it
            request.append(self.fps)
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
        slug = re.sub(r"\W+", "-", picture.prompt.lower()).strip("-")[:48] or "picture"
        return self.folder / f"{slug}-seed{picture.seed}-{digest}.png"

    def is_there(self, picture: Picture) -> bool:
        """Whether the picture was painted before, with its trace and heat map if they are wanted."""
        path = self.path(picture)
        return path.exists() and (not self.saves_trace or all(more.exists() for more in _trace_files(path)))


@options.with_config
def generate(
    config: RASConfig,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What to paint; several prompts make several pictures.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="A .txt file with a prompt a line, or .jsonl with prompt, seed, steps ... each.")
    ] = None,
    model: options.Model = "embedded",
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Where the PNGs go.")] = Path("outputs"),
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Per prompt, with seeds counting up.")] = 1,
    seed: options.Seed = 0,
    steps: options.Steps = 28,
    guidance: options.Guidance = None,
    height: options.Height = None,
    width: options.Width = None,
    frames: options.Frames = None,
    fps: options.FPS = FRAMES_PER_SECOND,
    negative_prompt: options.Negative = None,
    true_cfg_scale: options.TrueCFG = None,
    image: options.ImageFile = None,
    dense: Annotated[bool, typer.Option("--dense", help="Without RAS.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Save the trace (JSON) and the heat map, too.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Paint again what is there already.")] = False,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
) -> None:
    """Paint prompts with RAS (or dense); PNGs carry their settings. A batch that was stopped resumes where it was.

    Videos become animated PNGs, which browsers play and in which nothing is lost; `ffmpeg -i film.png film.mp4` makes
    them smaller.
    """
    from ras_dit.files import check_folder, read_prompts

    if num_images < 1:
        raise ValueError(f"--num-images: got {num_images}; allowed: at least 1.")
    if dense and trace:
        raise ValueError("--trace: a dense run has none; leave out --trace or --dense.")
    check_folder("--output-dir", output_dir)
    entries: list[dict[str, Any]] = [{"prompt": prompt} for prompt in prompts or ()]
    entries += read_prompts(prompts_file) if prompts_file is not None else []
    if not entries:
        raise ValueError("generate: got no prompt; give one or more, or --prompts-file.")
    common = {
        "seed": seed,
        "steps": steps,
        "guidance": guidance,
        "height": height,
        "width": width,
        "negative_prompt": negative_prompt,
        "num_frames": frames,
        "true_cfg_scale": true_cfg_scale,
        "image": image,
    }
    pictures = _pictures([{**common, **entry} for entry in entries], num_images)
    batch = Batch(model, None if dense else config, dtype, output_dir, trace, fps)
    kept: list[Picture] = []
    due: list[Picture] = []
    for picture in pictures:
        (due if overwrite or not batch.is_there(picture) else kept).append(picture)
    console = Console(soft_wrap=True, highlight=False)
    if kept:
        console.print(f"{len(kept)} of {len(pictures)} pictures are there already. First:", batch.path(kept[0]))
        console.print("--overwrite paints them again.")
    if due:
        _paint_all(batch, due, device, console)


def _trace_files(path: Path) -> tuple[Path, Path]:
    return path.with_suffix(".trace.json"), path.with_suffix(".heatmap.png")


def _pictures(settings: list[dict[str, Any]], num_images: int) -> list[Picture]:
    """Every picture once, in order."""
    from ras_dit.cli.pictures import Picture

    every = [Picture(**{**entry, "seed": entry["seed"] + number}) for entry in settings for number in range(num_images)]
    return list(dict.fromkeys(every))


def _paint_all(batch: Batch, pictures: list[Picture], device: str, console: Console) -> None:
    from ras_dit.cli.pictures import call_arguments, resolved
    from ras_dit.cli.pipelines import load_pipeline
    from ras_dit.cli.progress import runs_progress

    gives = ("image",) if all(picture.image for picture in pictures) else ()
    pipe = load_pipeline(batch.model, batch.dtype, device, allows_video=True, gives=gives)
    for picture in pictures:  # a mistake in the last one is known before the first is painted
        call_arguments(pipe, resolved(pipe, batch.model, picture))
    with runs_progress(f"{len(pictures)} picture(s)", sum(picture.steps for picture in pictures)) as advance:
        for picture in pictures:
            _paint_one(pipe, batch, picture, advance)
            console.print(f"Wrote {batch.path(picture)}", markup=False)


def _paint_one(pipe: Any, batch: Batch, picture: Picture, advance: Callable[[], None]) -> None:
    from ras_dit.cli.pictures import paint, resolved
    from ras_dit.cli.pipelines import makes_video
    from ras_dit.engine import accelerate
    from ras_dit.files import save_png, save_text
    from ras_dit.versions import versions

    path = batch.path(picture)
    asked = resolved(pipe, batch.model, picture)
    summary = "dense"
    if batch.config is None:
        frames = paint(pipe, asked, advance)
    else:
        with accelerate(pipe, batch.config) as handle:
            frames = paint(pipe, asked, advance)
            summary = str(handle.summary())
        if batch.saves_trace:  # before the picture, which is what says that all is there
            trace, heatmap = _trace_files(path)
            save_text(handle.trace.to_json(), trace)
            save_png(handle.trace.heatmaps(frames), heatmap, fps=batch.fps)
    metadata = {
        **{key: value for key, value in asked.to_dict().items() if value is not None},
        "height": frames[0].height,
        "width": frames[0].width,
        **({"num_frames": len(frames), "fps": batch.fps} if makes_video(type(pipe)) else {}),
        "model": batch.model,
        "dtype": batch.dtype,
        "config": batch.config and batch.config.to_dict(),
        "versions": versions(),
        "summary": summary,
    }
    save_png(frames, path, metadata, batch.fps)
