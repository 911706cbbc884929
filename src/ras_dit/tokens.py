"""Rows in, rows out, attention between: the hooks on one transformer, as its token plan describes it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ras_dit.addresses import FixedAddresses
from ras_dit.attention import AttentionMerge, LayerSeam, UnsupportedAttentionError
from ras_dit.cache import AS_COMPUTED, KVCache, KVStorage, reserved
from ras_dit.calls import Call
from ras_dit.config import RASConfig
from ras_dit.flops import keeping_layers
from ras_dit.kernels import Operations
from ras_dit.models import TokenPlan, TokenSelect
from ras_dit.models.plan import Stream, matches
from ras_dit.rows import RowIndex
from ras_dit.seams import PatchedMethod


class TokenSeams:
    """All hooks inside one transformer; idle unless a region step (or a dense one that fills the cache) is under way.

    Args:
        root: the transformer.
        token_plan: where its tokens enter, leave and attend.
        current: gives the transformer call under way, None outside of one.
        storages: how the attention modules keep keys and values, one after the other; the last is repeated.
    """

    def __init__(
        self,
        root: torch.nn.Module,
        token_plan: TokenPlan,
        current: Callable[[], Call | None],
        storages: Sequence[KVStorage] = (AS_COMPUTED,),
    ) -> None:
        self.root = root
        self.token_plan = token_plan
        self._current = current
        self._storages = storages
        self._is_static = storages[0].is_static
        self._root_signature = inspect.signature(type(root).forward)
        self._gates: list[torch.nn.Module] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._patches: list[PatchedMethod] = []
        self._layers: dict[str, tuple[LayerSeam, Stream]] = {}
        self._blocks: list[BlockSeam] = []
        self._text: list[TextSeam] = []

    def attach(self) -> None:
        """Put the hooks in. They fire in the order rows are gathered, attended with, scattered."""
        plan, self._gates = self.token_plan, self._gate_modules()
        for module, chosen in plan.gather_modules(self.root):
            named = {name: select for name, select in chosen.items() if isinstance(name, str)}
            outputs = {index: select for index, select in chosen.items() if isinstance(index, int)}
            if named:
                (stream,) = {select.stream for select in named.values()}  # one sequence for all of a module
                self._blocks.append(BlockSeam(module, named, stream))
                self._hooks.append(module.register_forward_pre_hook(self._blocks[-1], with_kwargs=True))
            if outputs:
                self._hooks.append(module.register_forward_hook(functools.partial(self._gather_outputs, outputs)))
        if plan.text_entry:
            module = self.root.get_submodule(plan.text_entry)
            self._text = [TextSeam(module, plan.text_rows or {}, plan.min_text)]
            self._hooks.append(module.register_forward_pre_hook(self._text[0], with_kwargs=True))
        for module in plan.scatter_modules(self.root):
            self._hooks.append(module.register_forward_hook(self._scatter))
        for name, module in self.root.named_modules():
            for pattern, argument in plan.whole.items():
                if matches(name, pattern):
                    hook = functools.partial(self._make_whole, argument, inspect.signature(type(module).forward))
                    self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        for name, (module, stream) in plan.attention_modules(self.root).items():
            self._layers[name] = (LayerSeam(plan.mask_query, plan.heads_per_key(module)), stream)
            seam = functools.partial(attention_seam, self._layers[name][0], name, module)
            self._patches.append(PatchedMethod(module, "forward", seam))

    def ensure(self) -> None:
        """Put back what somebody else took out (accelerate's offload does, when its hooks are removed), and follow
        modules that were replaced (peft wraps layers that LoRAs change, the first and the last one too)."""
        if self._gate_modules() != self._gates:
            self.close()
            self.attach()
        for patch in self._patches:
            patch.ensure()

    def _gate_modules(self) -> list[torch.nn.Module]:
        """Where rows are gathered and scattered, as the modules are now."""
        plan = self.token_plan
        return [*(module for module, _ in plan.gather_modules(self.root)), *plan.scatter_modules(self.root)]

    def close(self) -> None:
        """Take everything out."""
        for hook in self._hooks:
            hook.remove()
        for patch in self._patches:
            patch.release()
        self._hooks, self._patches, self._layers, self._blocks, self._text = [], [], {}, [], []

    def begin(self, call: Call) -> None:
        """Tell every attention module what the call does. Nothing has to be worked out inside the modules then."""
        if call.rows is None:
            self._begin_dense(call)
            return
        assert call.branch is not None
        for name, (layer, stream) in self._layers.items():
            cached_calls = call.branch.layers[name]
            num_kept = call.num_text_kept if stream == "joint" else 0
            advance = call.advance.twice if call.advance is not None and stream == "twice" else call.advance
            for cached in cached_calls:
                if cached.length >= call.num_image_rows:
                    cached.aim(self._place(stream, call, call.rows, cached.length), advance)
            layer.aim("region", cached_calls, call.rows.num_dropped * (2 if stream == "twice" else 1) + num_kept)

        for block in self._blocks:
            is_joint = block.stream == "joint"
            length = self._joint_length(call.branch.layers) if is_joint else call.num_image_rows
            block.aim(self._place(block.stream, call, call.rows, length), length)
        for text in self._text:
            text.is_dropping = call.num_text_kept > 0

    def _begin_dense(self, call: Call) -> None:
        """A dense step keeps keys and values, or measures them where their memory is static, or is left alone."""
        branch = call.branch
        if branch is None or not (call.captures or self._is_static):
            return
        earlier = dict(branch.layers)
        if call.captures and not self._is_static:
            branch.layers.clear()  # two generations of keys and values never stand side by side (but to forecast)
        for number, (name, (layer, stream)) in enumerate(self._layers.items()):
            if not call.captures:
                layer.aim("measure", [], 0)
                continue
            storage = self._storages[min(number, len(self._storages) - 1)]
            caches = self._followed(call, earlier.get(name, []), stream)
            if self._is_static:
                caches = reserved(caches, branch.likes.get(name, []), storage, call.forecasts) or caches
            layer.aim("capture", [], 0, storage, caches, call.forecasts)

    def _followed(self, call: Call, earlier: list[KVCache], stream: Stream) -> list[KVCache]:
        """The caches that a capture follows or refills; none where keys and values are neither forecast nor static."""
        if call.forecasts and call.advance is not None and call.whole is not None:
            for cached in earlier:
                if cached.length >= call.num_image_rows:
                    advance = call.advance.twice if stream == "twice" else call.advance
                    cached.aim_whole(advance, self._place(stream, call, call.whole, cached.length))
        return earlier if call.forecasts or self._is_static else []

    def _joint_length(self, layers: Mapping[str, list[KVCache]]) -> int:
        """Length of the joint sequence, as the last dense step had it."""
        return next(layers[name][0].length for name, (_, stream) in self._layers.items() if stream == "joint")

    def end(self, call: Call | None) -> None:
        """Hand what a capture kept to the call's branch; attention is left alone again."""
        for block in self._blocks:
            block.clear()
        for text in self._text:
            text.is_dropping = False
        masks: dict[object, torch.Tensor] = {}
        for name, (layer, _) in self._layers.items():
            if call is not None and call.branch is not None:
                if layer.kind == "capture":
                    if self._is_static:
                        layer.settle(masks)
                    call.branch.layers[name] = layer.calls
                elif layer.kind == "measure":
                    call.branch.likes[name] = layer.likes
            layer.clear()

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call of the transformer, by name."""
        return self._root_signature.bind_partial(self.root, *args, **kwargs).arguments

    def gather_root(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the rows of the transformer's own arguments; no text rows where those are kept."""
        call = self._current()
        assert call is not None
        bound = self._root_signature.bind_partial(self.root, *args, **kwargs)
        for name, select in self.token_plan.gather.get("", {}).items():
            if name in bound.arguments:
                bound.arguments[str(name)] = self._rows_of(bound.arguments[str(name)], select, call)
        if call.num_text_kept and self.token_plan.text_rows and not self.token_plan.text_entry:
            drop_text(bound.arguments, self.token_plan.text_rows, self.token_plan.min_text)
        return bound.args[1:], bound.kwargs

    # ------------------------------------------------------------------ rows

    def _gather_outputs(
        self, chosen: Mapping[int, TokenSelect], module: torch.nn.Module, args: tuple[Any, ...], output: Any
    ) -> Any:
        call = self._current()
        if call is None or call.rows is None:
            return None
        if isinstance(output, torch.Tensor):
            return self._rows_of(output, chosen[0], call)
        parts = list(output)
        for index, select in chosen.items():
            parts[index] = self._rows_of(parts[index], select, call)
        return type(output)(parts)

    def _rows_of(self, value: Any, select: TokenSelect, call: Call) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._rows_of(part, select, call) for part in value)
        if isinstance(value, dict):
            return {key: self._rows_of(part, select, call) for key, part in value.items()}
        if not isinstance(value, torch.Tensor) or value.ndim <= select.dim:
            return value
        dim = select.dim % value.ndim
        length = value.shape[dim]
        if length != call.num_image_rows if select.stream == "image" else length < call.num_image_rows:
            return value
        assert call.rows is not None
        return self._place(select.stream, call, call.rows, length).gather(value, dim)

    def _place(self, stream: Stream, call: Call, rows: RowIndex, length: int) -> RowIndex:
        """Where the grid begins in a sequence of this length, and where text lies in it that is not computed."""
        if stream == "image":
            return rows
        if stream == "twice":
            return rows.twice
        if call.joint_rows is not None:
            return call.joint_rows
        num_others, hole = length - call.num_image_rows, (0, 0)
        is_first = self.token_plan.layout == "image_first"
        if call.num_text_kept and num_others >= call.num_others:  # the text is in this sequence
            end = length if is_first else num_others
            hole = (end - call.num_text_kept, end)
        return rows.at(call.num_before if is_first else num_others + call.num_before, hole)

    def _make_whole(
        self,
        argument: str,
        signature: inspect.Signature,
        module: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        call = self._current()
        if call is None or call.rows is None:
            return None
        bound = signature.bind_partial(module, *args, **kwargs)
        bound.arguments[argument] = call.rows.scatter(bound.arguments[argument])
        return bound.args[1:], bound.kwargs

    def _scatter(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call = self._current()
        if call is None or call.rows is None:
            return None
        if isinstance(output, tuple):
            return (self._scatter(module, args, output[0]), *output[1:])
        if output.ndim == 2:
            return self._scatter(module, args, output[None])[0]
        length = output.shape[1] + call.rows.num_dropped
        if self.token_plan.scatter_stream == "joint" and not self.token_plan.text_rows:
            length += call.num_text_kept  # left out as rows were gathered
        return self._place(self.token_plan.scatter_stream, call, call.rows, length).scatter(output)


class BlockSeam:
    """Takes the rows of a block's arguments. It may be traced into a compiled block, so it only reads what `aim` laid
    out.

    Args:
        module: the block.
        chosen: names of its arguments -> the dimension that has one entry per row of the sequence.
        stream: that sequence.
    """

    def __init__(self, module: torch.nn.Module, chosen: Mapping[str, TokenSelect], stream: Stream) -> None:
        self.stream = stream
        parameters = list(inspect.signature(type(module).forward).parameters)[1:]
        self.places = [(name, parameters.index(name), select.dim) for name, select in chosen.items()]
        self.clear()

    def clear(self) -> None:
        """Leave the arguments alone."""
        self.index: torch.Tensor | None = None
        self.is_alike = False
        self.count = 0

    def aim(self, rows: RowIndex, length: int) -> None:
        """Take these rows of a sequence of this length."""
        self.index, self.is_alike, self.count = rows.laid_out(length)
        self.num_tokens, self.num_active = rows.num_tokens, rows.num_active
        self.rows, self.length = rows, length

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.index is None:
            return None
        new_args, new_kwargs = list(args), dict(kwargs)
        for name, place, dim in self.places:
            if name in kwargs:
                new_kwargs[name] = self._taken(kwargs[name], dim)
            elif place < len(args):
                new_args[place] = self._taken(args[place], dim)
        return tuple(new_args), new_kwargs

    def _taken(self, sequence: Any, dim: int) -> Any:
        if isinstance(sequence, int):  # a number of rows
            return self.num_active if sequence == self.num_tokens else sequence
        if isinstance(sequence, (list, tuple)):
            return type(sequence)(self._taken(part, dim) for part in sequence)
        if isinstance(sequence, dict):
            return {key: self._taken(part, dim) for key, part in sequence.items()}
        if not isinstance(sequence, torch.Tensor) or sequence.ndim <= dim:
            return sequence
        assert self.index is not None
        dim = dim % sequence.ndim
        length = sequence.shape[dim]
        if length != self.length:  # a part of the joint sequence that holds the grid, or none of it
            is_part = self.stream == "joint" and length >= self.num_tokens
            return self.rows.gather(sequence, dim) if is_part else sequence
        if self.is_alike:
            return sequence.index_select(dim, self.index.to(sequence.device))
        if dim != 1 or sequence.shape[0] * self.count != self.index.shape[0] or sequence.device != self.index.device:
            return self.rows.gather(sequence, dim)
        flat = sequence.reshape(sequence.shape[0] * sequence.shape[1], *sequence.shape[2:])
        return flat.index_select(0, self.index).view(sequence.shape[0], self.count, *sequence.shape[2:])


def drop_text(arguments: dict[str, Any], text_rows: Mapping[str, int | None], count: int) -> None:
    """Leave the first so many text rows of these arguments (see `TokenPlan.text_rows`)."""
    for name, dim in text_rows.items():
        if dim is None:
            arguments.pop(name, None)
        elif isinstance(arguments.get(name), torch.Tensor):
            arguments[name] = arguments[name].narrow(dim, 0, count)
        elif isinstance(arguments.get(name), (list, tuple)):
            arguments[name] = [part.narrow(dim, 0, count) for part in arguments[name]]


class TextSeam:
    """Drops the text rows of a block's arguments in region steps that reuse them; it may be traced as well.

    Args:
        module: the block.
        text_rows, min_text: see `TokenPlan`.
    """

    def __init__(self, module: torch.nn.Module, text_rows: Mapping[str, int | None], min_text: int) -> None:
        self.parameters = list(inspect.signature(type(module).forward).parameters)[1:]
        self.text_rows, self.min_text = text_rows, min_text
        self.is_dropping = False

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.is_dropping:
            return None
        arguments = {**dict(zip(self.parameters, args, strict=False)), **kwargs}
        drop_text(arguments, self.text_rows, self.min_text)
        return (), arguments


def attention_seam(
    layer: LayerSeam, name: str, module: torch.nn.Module, original: Callable[..., Any]
) -> Callable[..., Any]:
    """A forward of an attention module whose attention calls go to a seam, unless that is idle."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        if layer.kind == "idle":
            return original(*args, **kwargs)
        with AttentionMerge(layer):
            result = original(*args, **kwargs)
        if layer.position == 0 and not kwargs.get("all_perturbed", False):  # LTX-2's guidance that skips attention
            processor = type(getattr(module, "processor", module)).__name__
            raise UnsupportedAttentionError(
                f"attention: {processor} in {name} does not use scaled_dot_product_attention; RAS cannot merge cached "
                "keys into it. Use the default processor (pipe.transformer.set_attn_processor(...)) and the native "
                'backend (pipe.transformer.set_attention_backend("native")).'
            )
        return result

    return forward


def storages_of(
    config: RASConfig, num_layers: int, operations: Operations | None = None, addresses: FixedAddresses | None = None
) -> list[KVStorage]:
    """How each attention module keeps its keys and values.

    Raises:
        ValueError: there is no such device.
    """
    dtype = None if config.kv_cache_dtype is None else getattr(torch, config.kv_cache_dtype)
    device = None if config.kv_cache_device is None else torch.device(config.kv_cache_device)
    shares = keeping_layers(config.kv_cache_layers, num_layers)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"kv_cache_device: got {config.kv_cache_device!r}, which PyTorch cannot use: {error}"
        ) from error
    return [KVStorage(dtype, device, keeps, operations, addresses) for keeps in shares]
