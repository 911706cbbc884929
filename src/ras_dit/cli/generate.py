"""`ras-dit generate`: pictures or videos from prompts, resumable."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ras_dit.cli import options
from ras_dit.config import RASConfig
from ras_dit.files import FRAMES_PER_SECOND

if TYPE_CHECKING:
    from ras_dit.cli.pictures import Picture
    from ras_dit.engine import Summary

    Entry = tuple[str, dict[str, Any]]


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

    def found(self, picture: Picture) -> Path | None:
        """The picture (or its first layer) if it was painted before, with its trace and heat map if they are wanted."""
        from ras_dit.cli.pictures import layer_path

        path = self.path(picture)
        trace, heatmap = _trace_files(path)
        for first, its_map in ((path, heatmap), (layer_path(path, 0), layer_path(heatmap, 0))):
            if first.exists() and (not self.saves_trace or (trace.exists() and its_map.exists())):
                return first
        return None


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
    offload: options.Offload = "none",
) -> None:
    """Paint prompts with RAS (or dense); PNGs carry their settings. A batch that was stopped resumes where it was.

    Videos become animated PNGs, which browsers play and in which nothing is lost; `ffmpeg -i film.png film.mp4` makes
    them smaller. Sound is not kept. Layers (Qwen-Image-Layered) become pictures of their own, ...-layer0.png and so on.
    """
    from ras_dit.files import check_folder, numbered_prompts

    if num_images < 1:
        raise ValueError(f"--num-images: got {num_images}; allowed: at least 1.")
    if dense and trace:
        raise ValueError("--trace: a dense run has none; leave out --trace or --dense.")
    check_folder("--output-dir", output_dir)
    entries: list[Entry] = [("", {"prompt": prompt}) for prompt in prompts or ()]
    if prompts_file is not None:
        lines = numbered_prompts(prompts_file).items()
        entries += [(f"--prompts-file: {prompts_file}, line {number}: ", entry) for number, entry in lines]
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
    pictures = _pictures([(place, {**common, **entry}) for place, entry in entries], num_images)
    batch = Batch(model, None if dense else config, dtype, output_dir, trace, fps)
    kept = {} if overwrite else {picture: file for picture in pictures if (file := batch.found(picture))}
    due = {picture: place for picture, place in pictures.items() if picture not in kept}
    console = Console(soft_wrap=True, highlight=False)
    if kept:
        first = next(iter(kept.values()))
        console.print(f"{len(kept)} of {len(pictures)} pictures are there already. First:", first)
        console.print("--overwrite paints them again.")
    if due:
        _paint_all(batch, due, device, offload, console)


def _trace_files(path: Path) -> tuple[Path, Path]:
    return path.with_suffix(".trace.json"), path.with_suffix(".heatmap.png")


def _pictures(entries: list[Entry], num_images: int) -> dict[Picture, str]:
    """Every picture once, in order, with the place that errors name."""
    from ras_dit.cli.pictures import Picture

    found: dict[Picture, str] = {}
    for place, entry in entries:
        with _named(place):
            for number in range(num_images):
                found.setdefault(Picture(**{**entry, "seed": entry["seed"] + number}), place)
    return found


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Mistakes that show in the block are said with the place where they were made."""
    try:
        yield
    except ValueError as error:
        if not place:
            raise
        raise ValueError(f"{place}{error}") from error


def _paint_all(batch: Batch, pictures: Mapping[Picture, str], device: str, offload: str, console: Console) -> None:
    from ras_dit.cli.pictures import check_picture, resolved
    from ras_dit.cli.pipelines import load_pipeline
    from ras_dit.cli.progress import runs_progress

    gives = ("image",) if all(picture.image for picture in pictures) else ()
    pipe = load_pipeline(batch.model, batch.dtype, device, allows_video=True, gives=gives, offload=offload)
    for picture, place in pictures.items():  # a mistake in the last one is known before the first is painted
        with _named(place):
            check_picture(pipe, resolved(pipe, batch.model, picture), batch.config)
    with runs_progress(f"{len(pictures)} picture(s)", sum(picture.steps for picture in pictures)) as advance:
        for picture, place in pictures.items():
            with _named(place):
                files, summary = _paint_one(pipe, batch, picture, advance)
            for file in files:
                console.print(f"Wrote {file}", markup=False)
            if summary is not None:
                console.print(f"  {' '.join(str(replace(summary, advice=())).splitlines())}", markup=False)


def _paint_one(
    pipe: Any, batch: Batch, picture: Picture, advance: Callable[[], None]
) -> tuple[list[Path], Summary | None]:
    """Paint and write; the files of the picture, and what RAS did (None of a dense run)."""
    from ras_dit.cli.pictures import paint, painted_maps, resolved, save_painted
    from ras_dit.cli.pipelines import makes_video
    from ras_dit.engine import accelerate
    from ras_dit.files import save_text
    from ras_dit.versions import versions

    path, is_video = batch.path(picture), makes_video(type(pipe))
    asked = resolved(pipe, batch.model, picture)
    summary = None
    if batch.config is None:
        frames = paint(pipe, asked, advance)
    else:
        with accelerate(pipe, batch.config) as handle:
            frames = paint(pipe, asked, advance)
            summary = handle.summary()
        if batch.saves_trace:  # before the picture, which is what says that all is there
            trace, heatmap = _trace_files(path)
            save_text(handle.trace.to_json(), trace)
            save_painted(painted_maps(handle.trace, frames, is_video), heatmap, is_video, {}, batch.fps)
    metadata = {
        **{key: value for key, value in asked.to_dict().items() if value is not None},
        "height": frames[0].height,
        "width": frames[0].width,
        **({"num_frames": len(frames), "fps": batch.fps} if is_video else {}),
        "model": batch.model,
        "dtype": batch.dtype,
        "config": batch.config and batch.config.to_dict(),
        "versions": versions(),
        "summary": "dense" if summary is None else str(summary),
    }
    return save_painted(frames, path, is_video, metadata, batch.fps), summary
