"""What a plan costs before it runs: FLOPs counted from the transformer's own layers, and the size of the K/V cache."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ras_dit.config import RASConfig
from ras_dit.models import TokenPlan
from ras_dit.models.plan import fits, heads_per_key, stream_of, without_lora
from ras_dit.plan import Cost, Plan, Work


@dataclass(frozen=True)
class Layers:
    """What counts of a transformer's layers, read in one go.

    Attributes:
        linears: multiply-adds and numbers of one row, and the stream whose rows go through: linear and convolution
            layers.
        cross_attention: channels of every module that attends to the text.
        dense_attention: of every one that attends over all image tokens in front of the gather.
        attention: of every module that a token plan names, the channels of queries and of keys, the stream that its
            keys are, and that of its queries.
        num_leaves: modules without others inside, but for what a LoRA keeps beside its layers.
        dtype: that the transformer computes in.
    """

    linears: list[tuple[int, int, str]]
    cross_attention: list[int]
    dense_attention: list[int]
    attention: list[tuple[int, int, str, str]]
    num_leaves: int
    dtype: torch.dtype
    _read_from: tuple[object, list[weakref.ref[nn.Module]]] = field(repr=False, compare=False)

    @classmethod
    def of(cls, token_plan: TokenPlan, transformer: nn.Module) -> Layers:
        """Read from a transformer; its weights are not."""
        named = dict(transformer.named_modules())
        modules = list(named.values())
        idle = {name for path, module in named.items() for name in _idle_adapters(path, module)}
        named = {name: module for name, module in named.items() if name not in idle and not _is_fused(name, named)}
        num_leaves = sum(_is_leaf(name, module) for name, module in named.items())
        read_from = (_state(transformer, modules), [weakref.ref(module) for module in modules])
        found = cls([], [], [], [], num_leaves, compute_dtype(transformer), read_from)
        streams = token_plan.linear_streams(transformer)
        for name, module in named.items():
            size = _layer_size(module)
            if size:
                share = _share_of_experts(name, named)
                channels = round(_num_channels(module) * share)
                found.linears.append((round(size * share), channels, stream_of(name, streams)))
            if any(fits(name, pattern) for pattern in token_plan.cross_attention):
                found.cross_attention.append(_width(module))
            if any(fits(name, pattern) for pattern in token_plan.dense_attention):
                found.dense_attention.append(_width(module))
        for name, (module, stream) in token_plan.attention_modules(transformer).items():
            queries = stream_of(name, token_plan.queries, stream)
            found.attention.append((_width(module), _width(module) // heads_per_key(module), stream, queries))
        return found

    def updated(self, token_plan: TokenPlan, transformer: nn.Module) -> Layers:
        """The layers as they are now: these, unless the transformer has other modules than it had (LoRAs and adapters
        bring some, and can be switched off), or another type. To see that takes far less time than to read them all.
        """
        state, modules = self._read_from
        now = list(transformer.modules())
        is_same = len(now) == len(modules) and all(old() is new for old, new in zip(modules, now, strict=True))
        return self if is_same and state == _state(transformer, now) else Layers.of(token_plan, transformer)


def step_work(
    layers: Layers,
    num_active: int,
    num_tokens: int,
    num_text: int,
    num_extra: int = 0,
    kv_cache_layers: float = 1.0,
    has_timestep_per_token: bool = False,
    num_text_kept: int = 0,
    reference_reuse: bool = False,
) -> Work:
    """What one evaluation does for one row of the batch.

    Linear and convolution layers and attention count; norms, activations and rotary tables are left out.

    Args:
        layers: of the transformer.
        num_active: computed tokens K of the grid.
        num_tokens: tokens N of the grid.
        num_text: text tokens L.
        num_extra: reference tokens M beside the grid.
        kv_cache_layers: share of the layers that attend over all keys in a region step.
        has_timestep_per_token: every computed image token has a time embedding of its own.
        num_text_kept: those of the text tokens that are attended to, and not computed in the blocks.
        reference_reuse: reference tokens are attended to, and not computed.
    """
    image = num_active + (0 if reference_reuse else num_extra)
    num_queries = num_text - num_text_kept
    rows = {
        "image": image,
        "all_image": num_tokens + num_extra,
        "text": num_queries,
        "all_text": num_text,
        "joint": image + num_queries,
        "twice": 2 * image,
        "row": 1,
        "timestep": image if has_timestep_per_token else 1,
    }
    linear = sum(size * rows[stream] for size, _, stream in layers.linears)
    moved = sum(channels * rows[stream] for _, channels, stream in layers.linears)
    attention = 2 * sum(layers.cross_attention) * image * num_text
    attention += 2 * sum(layers.dense_attention) * (num_tokens + num_extra) ** 2
    for (width, _, stream, queries), keeps in zip(
        layers.attention, keeping_layers(kv_cache_layers, len(layers.attention)), strict=True
    ):
        keys = _sequence_length(stream, num_tokens + num_extra, num_text) if keeps else rows[stream]
        attention += 2 * width * rows[queries] * keys
    return Work(2.0 * linear, 2.0 * attention, moved)


def _idle_adapters(path: str, module: nn.Module) -> Iterator[str]:
    """LoRA layers that do not run: they were merged into the weights, or are switched off."""
    if "lora_A" in module._modules:
        running: Any = [] if module.merged or module.disable_adapters else module.active_adapters
        for part in ("lora_A", "lora_B"):
            yield from (f"{path}.{part}.{name}" for name in getattr(module, part) if name not in running)


def _state(transformer: nn.Module, modules: list[nn.Module]) -> object:
    """What may be another while the modules are the same."""
    adapters: Any = [module for module in modules if "lora_A" in module._modules]
    running = [(each.merged, each.disable_adapters, tuple(each.active_adapters)) for each in adapters]
    return next((parameter.dtype for parameter in transformer.parameters()), None), running


def _is_leaf(name: str, module: nn.Module) -> bool:
    """Whether a module is an operation or a few of an evaluation."""
    return not any(module.children()) and (name == without_lora(name) or _layer_size(module) > 0)


def _share_of_experts(name: str, named: Mapping[str, nn.Module]) -> float:
    """How many of the experts that a layer is one of a token goes through, as a share; 1 of one that is no expert."""
    path, _, number = name.partition(".experts.")
    count: Any = getattr(named[path], "num_activated_experts", None) if number else None
    return count / len(named[path].experts) if count else 1.0  # type: ignore[arg-type]


def _is_fused(name: str, named: Mapping[str, nn.Module]) -> bool:
    """Whether a layer stands for others beside it (``fuse_qkv_projections``), as many multiply-adds as they are."""
    module, _, own = without_lora(name).rpartition(".")
    return own in ("to_qkv", "to_kv", "to_added_qkv", "to_added_kv") and f"{module}.to_k" in named


def _layer_size(module: nn.Module) -> int:
    """Multiply-adds of a layer for one row: 0 for a module that is none."""
    if isinstance(module, nn.modules.conv._ConvNd):
        size = module.in_channels * module.out_channels // module.groups
        for side in module.kernel_size:
            size *= side
        return size
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    is_layer = isinstance(inputs, int) and isinstance(outputs, int) and not hasattr(module, "base_layer")
    return inputs * outputs if is_layer else 0  # type: ignore[operator]


def _num_channels(module: nn.Module) -> int:
    """Numbers per row that go into a layer and come out of it."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.in_channels + module.out_channels
    return module.in_features + module.out_features  # type: ignore[operator, return-value]


def _sequence_length(stream: str, num_image: int, num_text: int) -> int:
    """Keys of an attention module over a sequence of this kind."""
    return num_image * (2 if stream == "twice" else 1) + (num_text if stream == "joint" else 0)


def _width(module: nn.Module) -> int:
    """Channels of all heads of an attention module together."""
    width: Any = getattr(module, "inner_dim", None)
    if width is None:
        width = getattr(module, "heads", 0) * getattr(module, "head_dim", 0)
    query = getattr(module, "to_q", None) or getattr(module, "to_query", None)
    return int(width or getattr(query, "out_features", 0))


def compute_dtype(transformer: nn.Module) -> torch.dtype:
    """The type a transformer computes in: not that of quantised weights, nor of the few that stay in float32."""
    found = getattr(transformer, "dtype", None)  # of a diffusers model, which knows of both, and of layerwise casting
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    return next((p.dtype for p in transformer.parameters() if p.is_floating_point()), torch.float32)


def keeping_layers(share: float, num_layers: int) -> list[bool]:
    """Which layers keep keys and values: a share of them, at least one, spread evenly."""
    count = max(1, round(share * num_layers))
    return [(number + 1) * count // num_layers > number * count // num_layers for number in range(num_layers)]


def plan_cost(
    plan: Plan,
    token_plan: TokenPlan,
    layers: Layers,
    num_text: int,
    num_extra: int = 0,
    config: RASConfig = RASConfig(),  # noqa: B008 (frozen)
    has_timestep_per_token: bool = False,
    num_padding: int = 0,
) -> Cost:
    """The cost of a plan for one row of the batch (one image, one guidance row).

    Region steps count attention over full-length keys, and the text stream and reference tokens in full where they are
    computed; text tokens and the time embedding of a skipped step are not.

    Args:
        plan: steps and active counts.
        token_plan: describes the transformer class.
        layers: of the transformer.
        num_text: text tokens of the sequence.
        num_extra: reference tokens beside the grid.
        config: its ``kv_*`` and ``*_reuse`` options count.
        has_timestep_per_token: see `step_work`.
        num_padding: how many of the text tokens are padding.
    """
    num_tokens = plan.num_tokens
    share, is_timed = config.kv_cache_layers, has_timestep_per_token
    num_kept = token_plan.count_reused_text(num_text, num_padding) if config.text_reuse else 0

    def work(count: int) -> Work:
        reuses = (num_kept, config.reference_reuse) if count < num_tokens else ()
        return step_work(layers, count, num_tokens, num_text, num_extra, share, is_timed, *reuses)

    by_count = {
        count: work(count) for count in {num_tokens, *(step.num_active for step in plan if step.kind != "skip")}
    }
    total = sum(by_count[step.num_active].flops for step in plan if step.kind != "skip")
    element = layers.dtype.itemsize
    if config.kv_cache_dtype is not None:
        element = 1 if config.kv_cache_dtype.startswith("float8") else 2
    cache = 0
    copies = 4 if config.kv_forecast else 2  # keys and values, and the slope of each
    if any(step.captures for step in plan):
        keeping = keeping_layers(config.kv_cache_layers, len(layers.attention))
        for (_, width, stream, _), keeps in zip(layers.attention, keeping, strict=True):
            cache += copies * width * _sequence_length(stream, num_tokens + num_extra, num_text) * element * keeps
    return Cost(by_count[num_tokens].flops, total, cache, by_count)
