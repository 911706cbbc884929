"""`ras-dit generate`: pictures or videos from prompts, resumable."""

from __future__ import annotations

import hashlib
import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ras_dit.cli import options
from ras_dit.cli.exits import EXIT_OURS, EXIT_USAGE
from ras_dit.config import RASConfig
from ras_dit.files import FRAMES_PER_SECOND

if TYPE_CHECKING:
    from ras_dit.cli.pictures import Picture
    from ras_dit.engine import Summary

    Entry = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Origin:
    """Where a picture was asked for.

    Attributes:
        place: file and line, for errors; empty on the command line itself.
        flags: the fields of the picture as that would be without what the line says beside its prompt.
    """

    place: str
    flags: dict[str, Any]

    @contextmanager
    def named(self, check: Callable[[Picture], object] | None = None) -> Iterator[None]:
        """Mistakes that show in the block are said with the place, unless the flags alone make them too.

        Args:
            check: what is done in the block, with a picture.
        """
        try:
            yield
        except ValueError as error:
            if not self.place or (check is not None and self._is_of_flags(check, error)):
                raise
            raise ValueError(f"{self.place}{error}") from error

    def _is_of_flags(self, check: Callable[[Picture], object], error: ValueError) -> bool:
        from ras_dit.cli.pictures import Picture

        try:
            check(Picture(**self.flags))
        except ValueError as other:
            return str(other) == str(error)
        return False


@dataclass(frozen=True)
class Batch:
    """What the pictures of one command share."""

    model: str
    config: RASConfig | None
    dtype: str
    folder: Path
    saves_trace: bool
    fps: int
    keeps_going: bool = False

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
        from ras_dit.cli.outputs import layer_path

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
    mask_image: options.MaskImage = None,
    control_image: options.ControlImage = None,
    strength: options.Strength = None,
    dense: Annotated[bool, typer.Option("--dense", help="Without RAS.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Save the trace (JSON) and the heat map, too.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Paint again what is there already.")] = False,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going",
            help="Go on after a picture that failed, and say so at the end (exit code 2, or 1 for an error of ours).",
        ),
    ] = False,
    dtype: options.DType = "auto",
    device: options.Device = "auto",
    offload: options.Offload = "none",
) -> None:
    """Paint prompts with RAS (or dense); PNGs carry their settings. A batch that was stopped resumes where it was.

    Videos become animated PNGs, which browsers play and in which nothing is lost; `ffmpeg -i film.png film.mp4` makes
    them smaller. Sound is not kept. Layers (Qwen-Image-Layered) become pictures of their own, ...-layer0.png and so on.
    """
    from ras_dit.cli.places import check_folder
    from ras_dit.cli.prompts import numbered_prompts

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
        "mask_image": mask_image,
        "control_image": control_image,
        "strength": strength,
    }
    pictures = _pictures(entries, common, num_images)
    batch = Batch(model, None if dense else config, dtype, output_dir, trace, fps, keep_going)
    kept = {} if overwrite else {picture: file for picture in pictures if (file := batch.found(picture))}
    due = {picture: origin for picture, origin in pictures.items() if picture not in kept}
    console = Console(soft_wrap=True, highlight=False)
    if kept:
        first = next(iter(kept.values()))
        console.print(f"{len(kept)} of {len(pictures)} pictures are there already. First:", first)
        console.print("--overwrite paints them again.")
    if due:
        _paint_all(batch, due, device, offload, console)


def _trace_files(path: Path) -> tuple[Path, Path]:
    return path.with_suffix(".trace.json"), path.with_suffix(".heatmap.png")


def _pictures(entries: list[Entry], common: dict[str, Any], num_images: int) -> dict[Picture, Origin]:
    """Every picture once, in order, with what errors say about it."""
    from ras_dit.cli.pictures import Picture

    found: dict[Picture, Origin] = {}
    for place, entry in entries:
        fields = {**common, **entry}
        for number in range(num_images):
            plain = {**common, "prompt": entry["prompt"], "seed": common["seed"] + number}
            origin = Origin(place, plain)
            with origin.named(lambda picture: picture):
                found.setdefault(Picture(**{**fields, "seed": fields["seed"] + number}), origin)
    return found


def _check_calls(pipeline_class: Any, pictures: Mapping[Picture, Origin]) -> None:
    """`check_call` for every picture; where some give what others do not, it is the lines that differ."""
    from ras_dit.cli.call_checks import check_call

    def check(picture: Picture) -> None:
        check_call(pipeline_class, picture.gives)

    is_alike = len({picture.gives for picture in pictures}) == 1
    for picture, origin in pictures.items():
        with origin.named(check if is_alike else None):
            check(picture)


def _paint_all(batch: Batch, pictures: Mapping[Picture, Origin], device: str, offload: str, console: Console) -> None:
    from ras_dit.cli.messages import one_line, to_stderr
    from ras_dit.cli.picture_checks import check_picture, num_evaluations
    from ras_dit.cli.pictures import resolved
    from ras_dit.cli.pipelines import load_pipeline
    from ras_dit.cli.progress import runs_progress, share_of

    def check_class(pipeline_class: Any) -> None:
        _check_calls(pipeline_class, pictures)

    def check(picture: Picture) -> None:
        check_picture(pipe, resolved(pipe, batch.model, picture), batch.config)

    pipe = load_pipeline(batch.model, batch.dtype, device, allows_video=True, check=check_class, offload=offload)
    for picture, origin in pictures.items():  # a mistake in the last one is known before the first is painted
        with origin.named(check):
            check(picture)
    counts = [num_evaluations(pipe, picture) for picture in pictures]
    num_failed, is_ours = 0, False
    with runs_progress(f"{len(pictures)} picture(s)", sum(counts)) as advance:
        for (picture, origin), count in zip(pictures.items(), counts, strict=True):
            with share_of(advance, count) as on_step:
                try:
                    with origin.named():
                        files, summary = _paint_one(pipe, batch, picture, on_step)
                except Exception as error:
                    if not batch.keeps_going:
                        raise
                    message = one_line(error)
                    is_ours |= message is None
                    if message is None:
                        to_stderr("".join(traceback.format_exception(error)))
                    to_stderr(f"ras-dit: error: {picture.prompt!r}, seed {picture.seed}: {message or repr(error)}")
                    num_failed += 1
                    continue
            for file in files:
                console.print(f"Wrote {file}", markup=False)
            if summary is not None:
                console.print(f"  {' '.join(str(replace(summary, advice=())).splitlines())}", markup=False)
    if num_failed:
        to_stderr(
            f"ras-dit: error: {num_failed} of {len(pictures)} pictures failed, the others are written. The same "
            "command paints those that are missing."
        )
        raise typer.Exit(EXIT_OURS if is_ours else EXIT_USAGE)


def _paint_one(
    pipe: Any, batch: Batch, picture: Picture, on_step: Callable[[], None]
) -> tuple[list[Path], Summary | None]:
    """Paint and write; the files of the picture, and what RAS did (None of a dense run)."""
    from ras_dit.cli.outputs import painted_maps, save_painted
    from ras_dit.cli.pictures import paint, resolved
    from ras_dit.cli.pipelines import makes_video
    from ras_dit.engine import accelerate
    from ras_dit.files import save_text
    from ras_dit.versions import versions

    path, is_video = batch.path(picture), makes_video(type(pipe))
    asked = resolved(pipe, batch.model, picture)
    summary = None
    if batch.config is None:
        frames = paint(pipe, asked, on_step)
    else:
        with accelerate(pipe, batch.config) as handle:
            frames = paint(pipe, asked, on_step)
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
