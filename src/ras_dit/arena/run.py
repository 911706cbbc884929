"""Painting: every method, every prompt, the same noise; what is painted is on disk and is not painted again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ras_dit.arena.methods import BY_OTHERS, Method, Solver, applied, why_unfit
from ras_dit.arena.origins import painted_with
from ras_dit.arena.step_caches import import_cache_dit
from ras_dit.engine import check_reuse
from ras_dit.errors import is_out_of_memory
from ras_dit.files import FRAMES_PER_SECOND, alone_in, claim_folder, differences, save_png, save_text
from ras_dit.kernels import operations_for
from ras_dit.pipeline import device_of, transformers_of
from ras_dit.schedule import why_stochastic

DENSE, CONVERGED = "dense", "converged"
PIPELINE = "pipeline.json"


@dataclass(frozen=True)
class Scene:
    """One prompt with its seed, and what the embedded model's classifier should see (None: not known)."""

    prompt: str
    seed: int
    subject: int | None = None
    background: int | None = None


def arguments_for(scenes: Sequence[Scene], steps: int, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call for these scenes, each from its own noise; a negative prompt is for all of them."""
    arguments = {
        **call,
        "prompt": [scene.prompt for scene in scenes],
        "num_inference_steps": steps,
        "generator": [torch.Generator("cpu").manual_seed(scene.seed) for scene in scenes],
    }
    if "negative_prompt" in call:  # pipelines want as many as prompts
        arguments["negative_prompt"] = [call["negative_prompt"]] * len(scenes)
    return arguments


def call_for(pipe: Any, scenes: Sequence[Scene], steps: int, call: Mapping[str, Any]) -> Any:
    """What a pipeline returns for these scenes."""
    return pipe(**arguments_for(scenes, steps, call), output_type="pil")


def identity_of(pipe: Any) -> dict[str, Any]:
    """What pictures of one folder have in common: the pipeline, its weights and its scheduler, as JSON holds them."""
    scheduler = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    return {
        "pipeline": type(pipe).__name__,
        "transformer": " ".join(digest(transformer) for transformer in transformers_of(pipe)),
        "dtype": str(pipe.transformer.dtype),
        "scheduler": [type(pipe.scheduler).__name__, scheduler],
    }


def pixels(image: Image.Image | Sequence[Image.Image]) -> torch.Tensor:
    """uint8 [3, H, W] of a picture, [F, 3, H, W] of the frames of a video."""
    if isinstance(image, Sequence):
        return torch.stack([pixels(frame) for frame in image])
    return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0).contiguous()


class Arena:
    """A folder of pictures (or videos, as animated PNGs) by method, and the runs that made them.

    Two methods are always there: ``dense`` (the pipeline's own scheduler, ``steps``) and ``converged``
    (``converged_steps``); all others are compared with their pictures.

    Args:
        folder: where everything goes; an arena that was begun there goes on.
        scenes: what to paint.
        methods: the contestants.
        call: arguments of every pipeline call (guidance, size), without prompt, steps and generator.
        batch: pictures per call.
        steps: of the dense reference.
        converged_steps: of the converged one.
        converged_solver: of the converged one; `converged_solver_of` says which is best for a pipeline.
        fps: frames per second that videos are shown at.
        saves_traces: write the trace of every call with RAS, too (`trace_path`); calls painted before stay without.

    Raises:
        ValueError: the folder holds an arena of other scenes or calls, or two methods have one name.
    """

    def __init__(
        self,
        folder: Path,
        scenes: Sequence[Scene],
        methods: Sequence[Method],
        call: dict[str, Any],
        batch: int = 8,
        steps: int = 28,
        converged_steps: int = 200,
        converged_solver: Solver = "ab2",
        fps: int = FRAMES_PER_SECOND,
        saves_traces: bool = False,
    ) -> None:
        references = [
            Method(DENSE, "dense", steps),
            Method(CONVERGED, "converged", converged_steps, solver=converged_solver),
        ]
        self.methods = [*references, *methods]
        names = [method.slug for method in self.methods]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"methods: got {', '.join(twice)} twice; names must differ.")
        self.folder, self.scenes, self.call, self.batch, self.fps = folder, list(scenes), call, batch, fps
        self.saves_traces = saves_traces
        purpose: dict[str, Any] = {"scenes": [asdict(scene) for scene in scenes], "call": call, "batch": batch}
        if fps != FRAMES_PER_SECOND:  # as it is in folders that were begun without a word of it
            purpose["fps"] = fps
        if others := claim_folder(folder / "arena.json", purpose):
            raise ValueError(
                f"{folder}: holds an arena of other prompts, seeds or call arguments (or frames per second): "
                f"{'; '.join(others.values())}. Give the same ones, another --output, or remove that folder."
            )

    @property
    def num_calls(self) -> int:
        """Pipeline calls of a whole run."""
        return len(self.methods) * len(self._batches())

    def _batches(self) -> list[range]:
        """The scenes of each call."""
        starts = range(0, len(self.scenes), self.batch)
        return [range(start, min(start + self.batch, len(self.scenes))) for start in starts]

    def run(self, pipe: Any, on_call: Callable[[], None] = lambda: None) -> None:
        """Paint whatever is missing, the methods in turns, batch by batch, so that times are comparable.

        Args:
            pipe: makes pictures or videos from prompts.
            on_call: called after every pipeline call, painted or found.

        Raises:
            ValueError: a method was painted before with other options, the pipeline's scheduler adds fresh noise, or
                another process paints in this folder.
        """
        if reason := why_stochastic(pipe.scheduler):
            raise ValueError(f"arena: {reason}, so that RAS runs dense and nothing can be compared; use another one.")
        with alone_in(self.folder, "arena"):
            self._run(pipe, on_call)

    def _run(self, pipe: Any, on_call: Callable[[], None]) -> None:
        for method in self.methods:
            self._check_method(method)
        self._claim_pipeline(pipe)
        for method in self.methods:  # what failed before may have been mended since
            (self.folder / method.slug / "failure.txt").unlink(missing_ok=True)
            if all(self._is_painted(method, indices) for indices in self._batches()):
                continue  # what was painted elsewhere counts, whatever is missing here
            if reason := why_unfit(pipe.scheduler, method.solver) or _why_refused(pipe, method):
                if method.slug == CONVERGED:
                    raise ValueError(f"converged_{reason}")
                save_text(reason, self.folder / method.slug / "failure.txt")
        is_warm = False
        for indices in self._batches():
            beside: float | None = None
            for method in self.methods:
                if not self._is_painted(method, indices) and self.failure(method) is None:
                    if not is_warm:
                        self._paint(pipe, self.methods[0], indices)
                        is_warm = True
                    if beside is None and method is not self.methods[0]:  # painted by an earlier process
                        beside = self._seconds_of_dense(pipe, indices)
                    seconds = self._paint_and_save(pipe, method, indices, beside)
                    beside = seconds if beside is None else beside
                on_call()

    def _claim_pipeline(self, pipe: Any) -> None:
        """Keep pictures of one folder to one model."""
        if others := claim_folder(self.folder / PIPELINE, identity_of(pipe)):
            raise ValueError(
                f"{self.folder}: holds pictures of another model: {'; '.join(others.values())}. Give another --output, "
                "or remove that folder."
            )

    @property
    def pipeline(self) -> dict[str, Any] | None:
        """What paints here, as `identity_of` says it; None before anything was painted."""
        path = self.folder / PIPELINE
        found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return found

    def _seconds_of_dense(self, pipe: Any, indices: range) -> float:
        """Of a dense call, which methods of the same process are timed beside."""
        with applied(pipe, self.methods[0]):
            started = time.perf_counter()
            self._paint(pipe, self.methods[0], indices)
            return time.perf_counter() - started

    def _check_method(self, method: Method) -> None:
        path = self.folder / method.slug / "method.json"
        wanted = json.loads(json.dumps(method.to_dict()))
        if not path.is_file():
            save_text(json.dumps(wanted, indent=1) + "\n", path)
        elif (before := json.loads(path.read_text())) != wanted:
            raise ValueError(
                f"{path.parent}: was painted with other options: {differences('', wanted, before)}. Give another "
                "--output, or remove that folder, and the method is painted again."
            )

    def picture_path(self, method: Method, index: int) -> Path:
        """Where the picture of a scene is."""
        return self.folder / method.slug / f"{index:05d}.png"

    def trace_path(self, method: Method, first: int) -> Path:
        """Where the trace (`ras_dit.Trace.load`) of the call that begins with this scene is, if it was written; the
        images of its batch are the pictures from that one on."""
        return self.folder / method.slug / f"trace-{first:05d}.json"

    def runs(self, method: Method) -> list[dict[str, Any]]:
        """One record per call: first scene, seconds, those of a dense call beside it, token-steps (None where not
        counted), FLOPs per picture (of the first call alone), what it was painted with."""
        return [json.loads(path.read_text()) for path in sorted((self.folder / method.slug).glob("run-*.json"))]

    def pictures(self, method: Method) -> torch.Tensor:
        """All pictures of a method, uint8 [N, 3, H, W], or videos [N, F, 3, H, W]."""
        return torch.stack([read_pixels(self.picture_path(method, index)) for index in range(len(self.scenes))])

    def _is_painted(self, method: Method, indices: range) -> bool:
        return (self.folder / method.slug / f"run-{indices.start:05d}.json").is_file() and all(
            self.picture_path(method, index).is_file() for index in indices
        )

    def _paint(self, pipe: Any, method: Method, indices: Sequence[int]) -> list[Any]:
        """Pictures, or lists of frames."""
        scenes = [self.scenes[index] for index in indices]
        images: list[Any] = call_for(pipe, scenes, method.steps, self.call)[0]
        return images

    def failure(self, method: Method) -> str | None:
        """Why a method could not paint on this model or machine, None if it could."""
        path = self.folder / method.slug / "failure.txt"
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def _paint_and_save(self, pipe: Any, method: Method, indices: range, beside: float | None) -> float | None:
        """Seconds of the call; None if the method cannot paint."""
        try:
            return self._paint_timed(pipe, method, indices, beside)
        except (TypeError, ValueError, AttributeError, AssertionError, RuntimeError, LookupError) as error:
            is_peer = method.cache is not None or method.solver in BY_OTHERS
            if not is_peer or is_out_of_memory(error):
                raise  # ours and the dense runs have to work, and memory is the machine's; peers may not fit the model
            save_text(f"{type(error).__name__}: {error}", self.folder / method.slug / "failure.txt")
            return None

    def _paint_timed(self, pipe: Any, method: Method, indices: range, beside: float | None) -> float:
        counted = indices if method.is_adaptive else indices[:1]
        flops = self._count_flops(pipe, method, counted) if indices.start == 0 else None  # which warms it up
        with applied(pipe, method, calibrate=lambda: self._paint(pipe, method, indices[:1])) as handle:
            started = time.perf_counter()
            images = self._paint(pipe, method, indices)
            seconds = time.perf_counter() - started
            token_steps = None if handle is None else handle.trace.token_steps
            notes = [] if handle is None else list(handle.summary().notes)
        if handle is not None and self.saves_traces:
            handle.trace.save(self.trace_path(method, indices.start))
        for index, image in zip(indices, images, strict=True):
            save_png(image, self.picture_path(method, index), fps=self.fps)
        record = {"first": indices.start, "count": len(indices), "seconds": seconds, "token_steps": token_steps}
        record |= {"dense_seconds": seconds if beside is None else beside, "flops": flops, "notes": notes}
        record |= painted_with(device_of(pipe))
        save_text(json.dumps(record) + "\n", self.folder / method.slug / f"run-{indices.start:05d}.json")
        return seconds

    def _count_flops(self, pipe: Any, method: Method, indices: Sequence[int]) -> float:
        """FLOPs of the transformers for a picture of these, as torch counts them."""
        counter = FlopCounter()

        def enter(*_: Any) -> None:
            counter.__enter__()

        def leave(*_: Any) -> None:
            counter.__exit__(None, None, None)

        calibrated = applied(pipe, method, calibrate=lambda: self._paint(pipe, method, indices[:1]))
        with calibrated:
            hooks = [module.register_forward_pre_hook(enter) for module in transformers_of(pipe)]
            hooks += [module.register_forward_hook(leave, always_call=True) for module in transformers_of(pipe)]
            try:
                self._paint(pipe, method, indices)
            finally:
                for hook in hooks:
                    hook.remove()
        return counter.total / len(indices)


def _why_refused(pipe: Any, method: Method) -> str:
    """Why a method cannot be put on this model, or on this machine; empty if it can."""
    try:
        if method.config is not None:
            check_reuse(pipe, method.config)
            operations_for(method.config.kernels, device_of(pipe))
        elif method.cache is not None and method.cache.kind == "dbcache":
            import_cache_dit()
    except (ValueError, ImportError) as error:
        return str(error)
    return ""


def converged_solver_of(pipe: Any) -> Solver:
    """Second order where the pipeline's scheduler lets itself be replaced by it, otherwise its own."""
    return "euler" if why_unfit(pipe.scheduler, "ab2") else "ab2"


def read_pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
    return pixels(frames) if len(frames) > 1 else pixels(frames[0])


def digest(model: torch.nn.Module) -> str:
    """Twelve digits of a model's class, the names and shapes of its weights, and some of their values."""
    found = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        owner, _, own = name.rpartition(".")
        if tensor.device.type == "meta":
            from accelerate.utils import align_module_device, has_offloaded_params  # since accelerate 1.1

            if has_offloaded_params(module := model.get_submodule(owner)):
                with align_module_device(module, "cpu"):  # it is there only while its module runs
                    tensor = getattr(module, own).detach()
        is_plain = type(tensor) is torch.Tensor and tensor.is_floating_point() and tensor.device.type != "meta"
        if is_plain and tensor.numel():
            found.update(tensor.flatten()[:: 1 + tensor.numel() // 64].to("cpu", torch.float32).numpy().tobytes())
    return found.hexdigest()[:12]


_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention
_MORE_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable,
)


class FlopCounter(TorchDispatchMode):
    """Adds up torch's own FLOP formulas of the operations inside it; attention counts whichever kernel computes it.

    (torch's FlopCounterMode also names modules, which cache-dit's circular ones keep it from, and knows no attention of
    CPUs.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func._overloadpacket
        formula = flop_registry.get(_ATTENTION if operation in _MORE_ATTENTION else operation)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result
