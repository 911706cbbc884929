"""What the library must know about a transformer class: where tokens enter, where they leave, where they attend."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch

from ras_dit.geometry import TokenGrid
from ras_dit.schedule import is_at

Arguments = Mapping[str, Any]
"""Arguments of the transformer's forward by name, as the pipeline called it."""

Stream = Literal["image", "joint", "twice"]
"""``image``: the tokens of the grid, then reference tokens. ``joint``: those and the text in one sequence. ``twice``:
the grid two times over (attention modules only)."""

FlopStream = Literal["image", "all_image", "text", "all_text", "joint", "row", "timestep", "twice"]
"""What a linear layer works on: computed image rows, all of them (in front of the gather), computed text, all of it,
computed image rows and text, one vector per row of the batch, or one per timestep (``row``, or ``image`` where every
token has its own)."""


@dataclass(frozen=True)
class TokenSelect:
    """A tensor (or list of them) with one row per token along ``dim``; others of the same name are left alone.

    ``dim`` 0 is a table without a batch dimension (rotary tables, mostly): region steps then compute one image after
    the other. A negative one counts from the end. ``is_picture`` is one with the tokens in the last two dimensions,
    [R, D, height, width]; what is taken of it is a column, [R, D, K, 1]. ``is_common`` is one that all modules of a
    pattern are given alike: its rows are taken once per step (in compiled blocks: once per block).
    """

    dim: int = 1
    stream: Stream = "image"
    is_picture: bool = False
    is_common: bool = False


@dataclass(frozen=True)
class TokenPlan:
    """One supported transformer class. docs/adding-a-model.md goes through the fields by example.

    Attributes:
        transformer: its class name in diffusers.
        family: the models people know it by.
        pipelines: diffusers pipelines this was tried with.
        gather: module (dotted path with ``*`` inside its parts, "" is the transformer itself) -> argument name, or
            index into the module's output -> which rows to take.
        gather_if: pattern of ``gather`` -> the option of the transformer's config without which nothing is taken there.
        gather_methods: method of a module (dotted path) -> which rows to take of what it returns.
        prepare: module -> what is done to its positional arguments in every evaluation, such that it returns the same:
            (module, arguments) -> arguments.
        repeated: functions that the pipeline's ``__call__`` calls with the same arguments in every step, by their
            global names: they are called once while RAS is on (see `ras_dit.seams.KeptResults`).
        scatter: module whose output rows go back to their places.
        scatter_stream: sequence that this output is.
        attention: attention modules whose keys and values are kept -> the sequence they attend over.
        layout: order inside joint attention. Reference tokens follow the grid in either.
        grid: the token grid of a call: (transformer, arguments) -> TokenGrid.
        linears: linear and convolution layers by pattern (``*`` matches anything) -> what they work on; the first
            match counts, layers without one work on one vector per row. For the cost model.
        queries: patterns of those attention modules whose queries are not the rows of the sequence that their keys
            are -> what they are; for the cost model.
        cross_attention: patterns of attention modules from image to text, likewise.
        dense_attention: patterns of modules that attend over all image tokens in front of the gather, likewise.
        latents: argument with the latents.
        timestep: argument with the timestep.
        scheduler_timestep: that argument -> the scheduler's timestep it stands for.
        text: arguments with the text tokens [R, L, D], one after the other in the sequence.
        text_rows: arguments with one entry per text token of the joint sequence -> their dimension, where region steps
            can do without computing them (`RASConfig.text_reuse`); None for an argument that they do without. Empty
            where the text is dropped as rows are gathered, None where region steps cannot do without it.
        text_entry: the module whose arguments these are, where text is refined in front of it ("" the transformer).
        min_text: text tokens, the first ones, that region steps compute all the same: layers cannot take none.
        can_drop_text: whether a transformer of this class can, where only some of them can.
        reuses_references: region steps can do without computing reference tokens (`RASConfig.reference_reuse`): they
            are the same in every step, and nobody reads their noise.
        repeats_keys: where several heads of queries share one of keys, attention gets every key and value head as many
            times, one beside the other: one of each is kept.
        num_registers: tokens of the model's own that stand with the text.
        count_others: how many tokens stand beside the image tokens, where that is more than text and registers
            (padding): (transformer, arguments, grid) -> int.
        count_unpadded: how many of them the joint layers have, where padding is cut off in front of those; for the
            cost, once per run (a GPU is waited for): arguments -> int.
        count_padding: how many of those are padding, which stands between picture and text: likewise.
        has_shared_positions: the model reads the first image's positions for all of them.
        positions: what tells the position tables of one call from those of another, where a pipeline changes them in
            the middle of a run (keys of different tables do not go together): arguments -> value.
        unbatched: arguments without a batch dimension, beside those that are gathered or dropped along dimension 0;
            where all images go through one call, that need not be said.
        can_split: whether the rows of one image can be taken out of a call's arguments: arguments -> bool; None where
            they never can.
        patch: latent frames and latent pixels per token side: transformer -> (frames, pixels).
        num_text: text tokens per prompt, (pipeline, max_sequence_length) -> int, for estimates made before a run.
        joint_offset: where the grid begins in a joint sequence, by row of the batch, where the model makes that depend
            on the prompt: arguments -> LongTensor [R].
        num_first: grid tokens at the beginning (a given first frame) that every step computes:
            (transformer, arguments, grid) -> int.
        mask_query: the query whose row of the mask stands for all (0 the first one), where a model makes a mask of
            queries and keys anew in every layer; None keeps masks whole.
        hides_nothing: masks of self-attention are there, and let every query see every key. Region steps go without
            one, except on a CPU (whose kernel rounds otherwise without).
        whole: module -> argument that is put back to full length in front of it (a layer that tells frames apart by
            their length); what it puts out for the other tokens means nothing and is to be gathered again.
        timestep_is_level: the timestep argument is the noise level itself, in the scheduler's form or in 0..1.
        check: refuses calls that cannot be accelerated: (transformer, arguments) -> reason, or None.
        caveats: what a user should know.
    """

    transformer: str
    family: str
    pipelines: tuple[str, ...]
    gather: Mapping[str, Mapping[str | int, TokenSelect]]
    scatter: str
    attention: Mapping[str, Stream]
    grid: Callable[[Any, Arguments], TokenGrid]
    linears: Mapping[str, FlopStream]
    gather_if: Mapping[str, str] = field(default_factory=dict)
    gather_methods: Mapping[str, TokenSelect] = field(default_factory=dict)
    prepare: Mapping[str, Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]] = field(default_factory=dict)
    repeated: tuple[str, ...] = ()
    scatter_stream: Stream = "image"
    layout: Literal["image_first", "text_first"] = "image_first"
    queries: Mapping[str, FlopStream] = field(default_factory=dict)
    cross_attention: tuple[str, ...] = ()
    dense_attention: tuple[str, ...] = ()
    latents: str = "hidden_states"
    timestep: str = "timestep"
    scheduler_timestep: Callable[[torch.Tensor], torch.Tensor] = lambda timestep: timestep
    text: tuple[str, ...] = ("encoder_hidden_states",)
    text_rows: Mapping[str, int | None] | None = None
    text_entry: str = ""
    min_text: int = 0
    can_drop_text: Callable[[Any], bool] = lambda transformer: True
    reuses_references: bool = False
    repeats_keys: bool = False
    num_registers: int = 0
    count_others: Callable[[Any, Arguments, TokenGrid], int] | None = None
    count_unpadded: Callable[[Arguments], int] | None = None
    count_padding: Callable[[Any, Arguments, TokenGrid], int] = lambda transformer, arguments, grid: 0
    has_shared_positions: bool = False
    positions: Callable[[Arguments], object] = lambda arguments: None
    unbatched: tuple[str, ...] = ()
    can_split: Callable[[Arguments], bool] | None = lambda arguments: True
    patch: Callable[[Any], tuple[int, int]] = lambda transformer: (1, transformer.config.patch_size)
    num_text: Callable[[Any, int], int] = lambda pipe, max_sequence_length: max_sequence_length
    joint_offset: Callable[[Arguments], torch.Tensor] | None = None
    num_first: Callable[[Any, Arguments, TokenGrid], int] = lambda transformer, arguments, grid: 0
    mask_query: int | None = None
    hides_nothing: bool = False
    whole: Mapping[str, str] = field(default_factory=dict)
    timestep_is_level: bool = False
    check: Callable[[Any, Arguments], str | None] = lambda transformer, arguments: None
    caveats: tuple[str, ...] = field(default=())

    def grid_or_reason(self, transformer: Any, arguments: Arguments) -> TokenGrid | str:
        """The grid of a call; where that cannot be told, why the call is refused.

        Raises:
            Exception: the grid cannot be told, and nothing refuses the call.
        """
        try:
            return self.grid(transformer, arguments)
        except Exception:
            if (reason := self.check(transformer, arguments)) is None:
                raise
            return reason

    def timestep_in(self, scheduler: Any, timestep: Any) -> Any:
        """The scheduler's timestep for the transformer's timestep argument."""
        if not self.timestep_is_level:
            return self.scheduler_timestep(timestep)
        timesteps = scheduler.timesteps
        levels = scheduler.sigmas[: len(timesteps)]
        levels = levels / (1 + levels) if float(levels[0]) > 1 else levels
        return timesteps[(levels - timestep.flatten()[-1].to(levels.device)).abs().argmin()]

    def is_due(self, scheduler: Any, timestep: Any, index: int) -> bool:
        """Whether a call belongs to an evaluation, by its timestep. On an accelerator it is taken to, so that the
        device need not be waited for.

        Args:
            scheduler: of the pipeline.
            timestep: the transformer's timestep argument.
            index: of the evaluation, among the scheduler's timesteps.
        """
        if isinstance(timestep, torch.Tensor) and timestep.device.type != "cpu":
            return True
        if self.timestep_is_level and isinstance(timestep, torch.Tensor):
            rounding = 1e-6 + torch.finfo(timestep.dtype).eps  # levels near 1 lie closer than a short type tells apart
            given, sigma = float(timestep.flatten()[-1]), float(scheduler.sigmas[index])
            return min(abs(given - sigma), abs(given - sigma / (1 + sigma))) < rounding
        given = self.timestep_in(scheduler, timestep) if isinstance(timestep, torch.Tensor) else timestep
        return is_at(given, scheduler.timesteps[index], like=timestep)

    def count_text(self, transformer: Any, arguments: Arguments, grid: TokenGrid) -> int:
        """Text, register and padding tokens of a call."""
        if self.count_others is not None:
            return self.count_others(transformer, arguments, grid)
        texts = [arguments.get(name) for name in self.text]
        texts = [text[0] if isinstance(text, tuple) and text else text for text in texts]  # its context of a picture
        return self.num_registers + sum(text.shape[-2] for text in texts if isinstance(text, torch.Tensor))

    def count_costed_text(self, transformer: Any, arguments: Arguments, grid: TokenGrid) -> int:
        """The same for the cost, without padding that is cut off."""
        unpadded = self.count_unpadded
        return self.count_text(transformer, arguments, grid) if unpadded is None else unpadded(arguments)

    def texts(self, arguments: Arguments) -> list[torch.Tensor]:
        """What the text tokens of a call are made of."""
        given = [arguments.get(name) for name in self.text]
        parts = [part for text in given for part in (text if isinstance(text, (list, tuple)) else [text])]
        return [part for part in parts if isinstance(part, torch.Tensor)]

    def count_reused_text(self, num_text: int, num_padding: int) -> int:
        """Text tokens that region steps can do without computing.

        Args:
            num_text: what `count_text` gives.
            num_padding: what `count_padding` gives.
        """
        return max(0, num_text - self.num_registers - self.min_text - num_padding)

    def has_timestep_per_token(self, arguments: Arguments, num_image_rows: int) -> bool:
        """Whether a call gives every image token a timestep of its own (a given first frame has 0)."""
        timestep = arguments.get(self.timestep)
        return isinstance(timestep, torch.Tensor) and timestep.ndim > 1 and timestep.shape[1] == num_image_rows

    def given_tokens(self, arguments: Arguments, grid: TokenGrid, num_extra: int = 0) -> torch.Tensor | None:
        """Tokens of the grid that have timestep 0 and are not sampled, bool [1, N]; None without one.

        Args:
            arguments: of a call.
            grid: its token grid.
            num_extra: reference tokens M beside the grid.
        """
        if not self.has_timestep_per_token(arguments, grid.num_tokens + num_extra):
            return None
        is_given = arguments[self.timestep][:1, grid.num_before : grid.num_before + grid.num_tokens] == 0
        return is_given if bool(is_given.any()) else None

    def reuses_text(self, transformer: Any) -> bool:
        """Whether region steps of a transformer can do without computing text (`RASConfig.text_reuse`)."""
        return self.text_rows is not None and self.can_drop_text(transformer)

    def heads_per_key(self, attention: torch.nn.Module) -> int:
        """How often an attention module repeats every head of keys and values; 1 where it does not."""
        return heads_per_key(attention) if self.repeats_keys else 1

    @property
    def has_batched_positions(self) -> bool:
        """Whether one call can compute another set of tokens for every image of a batch. (Where it cannot, images go
        through the transformer one after the other: `ras_dit.by_image`.)"""
        if self.has_shared_positions:
            return False
        return all(select.dim != 0 for chosen in self.gather.values() for select in chosen.values())

    @property
    def unbatched_arguments(self) -> frozenset[str]:
        """Arguments of the transformer that have no batch dimension."""
        tables = {str(name) for name, select in self.gather.get("", {}).items() if select.dim == 0}
        tables |= {name for name, dim in (self.text_rows or {}).items() if dim == 0}
        return frozenset({*tables, *self.unbatched})

    def attention_modules(self, transformer: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, Stream]]:
        """The attention modules by their dotted path, in the order of the layers."""
        found = {}
        for name, module in transformer.named_modules():
            stream = next((stream for pattern, stream in self.attention.items() if matches(name, pattern)), None)
            if stream is not None:
                found[name] = (module, stream)
        return found

    def scatter_modules(self, transformer: torch.nn.Module) -> list[torch.nn.Module]:
        """The modules whose output rows go back; ``-1`` at the end of the path is the last one of a list."""
        path, _, last = self.scatter.rpartition(".")
        if last == "-1":
            return [transformer.get_submodule(path)[-1]]  # type: ignore[index]
        return [module for _, module in named(transformer, self.scatter)]

    def linear_streams(self, transformer: torch.nn.Module) -> Mapping[str, FlopStream]:
        """``linears``, where they depend on the transformer's configuration."""
        return self.linears

    def gather_modules(
        self, transformer: torch.nn.Module
    ) -> list[tuple[torch.nn.Module, Mapping[str | int, TokenSelect]]]:
        """The modules below the transformer where rows are taken."""
        config = getattr(transformer, "config", {})
        return [
            (module, chosen)
            for pattern, chosen in self.gather.items()
            if pattern and (pattern not in self.gather_if or config.get(self.gather_if[pattern]))
            for _, module in named(transformer, pattern)
        ]


def heads_per_key(attention: torch.nn.Module) -> int:
    """Heads of queries that share one head of keys (grouped queries), by the sizes of the projections; 1 if every one
    has its own, or the module has no projections by the names that diffusers gives them."""
    query, key = (getattr(getattr(attention, name, None), "out_features", None) for name in ("to_q", "to_k"))
    if not isinstance(query, int) or not isinstance(key, int) or not key or query % key:
        return 1
    return query // key


@functools.lru_cache(maxsize=2**16)
def fits(name: str, pattern: str) -> bool:
    """A glob over a whole dotted path. Remembered, for every run asks the same of hundreds of modules."""
    return fnmatchcase(name, pattern)


def without_lora(name: str) -> str:
    """The path of a layer that a LoRA has been put around, for the layers inside (the own one, and the LoRA's)."""
    return _LORA.sub("", name)


_LORA = re.compile(r"\.(?:base_layer|lora_[A-Za-z_]+(?:\.[^.]+)?)(?=\.|$)")


def stream_of(name: str, streams: Mapping[str, FlopStream], default: FlopStream = "row") -> FlopStream:
    """What a module works on, by the patterns of `TokenPlan.linears` or `TokenPlan.queries`; the layers of an adapter
    for pictures (they are the attention processor's) on the few tokens of those."""
    if ".processor." in name:
        return "row"
    plain = without_lora(name)
    return next((stream for pattern, stream in streams.items() if fits(plain, pattern)), default)


@functools.lru_cache(maxsize=2**16)
def matches(name: str, pattern: str) -> bool:
    """A glob in which ``*`` stays inside one part of a dotted path."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=True))


def named(root: torch.nn.Module, pattern: str) -> list[tuple[str, torch.nn.Module]]:
    """The modules whose dotted path fits a pattern (see `matches`)."""
    if "*" in pattern:
        return [(name, module) for name, module in root.named_modules() if matches(name, pattern)]
    try:
        return [(pattern, root.get_submodule(pattern))]
    except AttributeError:
        return []


def picture_grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The grid of ``hidden_states`` [R, C, H, W] with ``config.patch_size``."""
    return TokenGrid.of_latents(arguments["hidden_states"], transformer.config.patch_size)


def video_grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The grid of ``hidden_states`` [R, C, F, H, W] with ``config.patch_size`` and ``config.patch_size_t``."""
    config = transformer.config
    return TokenGrid.of_video(arguments["hidden_states"], config.patch_size, config.patch_size_t)


def flat_video_grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The grid of ``hidden_states`` [R, C, F, H, W] with ``config.patch_size``; a token lies in one frame."""
    return TokenGrid.of_video(arguments["hidden_states"], transformer.config.patch_size)


def grid_of_ids(ids: torch.Tensor, patch_size: int) -> TokenGrid:
    """The grid of tokens that carry their place: ids [N + M, 3 or more] of (kind, row, column, ...).

    Tokens of the picture come first, row by row; reference tokens have another kind. Ids in bfloat16, which are rounded
    from 256 on, still rise within a row and fall at its end.

    Args:
        ids: position ids of all image tokens.
        patch_size: latent pixels per token side.
    """
    ids = ids[0] if ids.ndim == 3 else ids
    of_picture = ids[ids[:, 0] == ids[0, 0]]
    columns, num_tokens = of_picture[:, 2], len(of_picture)
    num_falls = int((columns[1:] < columns[:-1]).sum())
    is_one_column = num_falls == 0 and bool((columns == columns[0]).all())
    height = num_tokens if is_one_column else num_falls + 1
    return TokenGrid(height, num_tokens // height, patch_size)
