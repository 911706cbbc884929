"""Rows in, rows out, attention between: the hooks on one transformer, as its token plan describes it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ras_dit.addresses import FixedAddresses
from ras_dit.attention import LayerSeam
from ras_dit.blocks import BlockSeam, TextSeam, attention_seam, drop_text
from ras_dit.cache import KVCache, reserved, rows_alone
from ras_dit.calls import Call
from ras_dit.config import RASConfig
from ras_dit.flops import keeping_layers
from ras_dit.kernels import Operations
from ras_dit.kv_storage import AS_COMPUTED, KVStorage
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
    """

    def __init__(
        self,
        root: torch.nn.Module,
        token_plan: TokenPlan,
        current: Callable[[], Call | None],
    ) -> None:
        self.root = root
        self.token_plan = token_plan
        self.current = current
        self.keep_by((AS_COMPUTED,))
        self._root_signature = inspect.signature(type(root).forward)
        self._gates: list[torch.nn.Module] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._patches: list[PatchedMethod] = []
        self._layers: dict[str, tuple[LayerSeam, Stream]] = {}
        self._blocks: list[BlockSeam] = []
        self._text: list[TextSeam] = []

    def keep_by(self, storages: Sequence[KVStorage]) -> None:
        """How the attention modules keep keys and values, one after the other; the last is repeated."""
        self._storages = storages
        self._is_static = storages[0].is_static

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
        for path, select in plan.gather_methods.items():
            owner, _, name = path.rpartition(".")
            wrap = functools.partial(self._gather_result, select)
            self._patches.append(PatchedMethod(self.root.get_submodule(owner), name, wrap))
        for path, prepare in plan.prepare.items():
            self._hooks.append(self.root.get_submodule(path).register_forward_pre_hook(prepare))
        for module in plan.scatter_modules(self.root):
            self._hooks.append(module.register_forward_hook(self._scatter))
        for name, module in self.root.named_modules():
            for pattern, argument in plan.whole.items():
                if matches(name, pattern):
                    hook = functools.partial(self._make_whole, argument, inspect.signature(type(module).forward))
                    self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        for name, (module, stream) in plan.attention_modules(self.root).items():
            self._layers[name] = (LayerSeam(plan.mask_query, plan.heads_per_key(module), plan.hides_nothing), stream)
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
            advance = call.advance.twice if call.advance is not None and stream == "twice" else call.advance
            for cached in cached_calls:
                if cached.length >= call.num_image_rows:
                    cached.aim(self._place(stream, call, call.rows, cached.length), advance)
            layer.aim("region", cached_calls)

        for block in self._blocks:
            is_joint = block.stream == "joint"
            length = self._joint_length(call.branch.layers) if is_joint else call.num_image_rows
            block.aim(self._place(block.stream, call, call.rows, length), length)
        for text in self._text:
            text.is_dropping = call.num_text_kept > 0

    def _begin_dense(self, call: Call) -> None:
        """A dense step keeps keys and values, or measures them where their memory is static, or is left alone."""
        branch = call.branch
        if branch is None or call.kind == "skip" or not (call.captures or self._is_static):
            return
        earlier = dict(branch.layers)
        if call.captures and not self._is_static:
            branch.layers.clear()  # two generations of keys and values never stand side by side
        for number, (name, (layer, stream)) in enumerate(self._layers.items()):
            if not call.captures:
                layer.aim("measure", [])
                continue
            storage = self._storages[min(number, len(self._storages) - 1)]
            caches = self._followed(call, earlier.get(name, []), stream)
            if self._is_static:
                caches = reserved(caches, branch.likes.get(name, []), storage, call.forecasts) or caches
            layer.aim("capture", [], storage, caches, call.forecasts)

    def _followed(self, call: Call, earlier: list[KVCache], stream: Stream) -> list[KVCache]:
        """The caches that a capture refills; none where keys and values are neither forecast nor static."""
        if call.forecasts and call.advance is not None and call.whole is not None:
            advance = call.advance.twice if stream == "twice" else call.advance
            for cached, row in zip(earlier, rows_alone(earlier, len(call.whole.active)), strict=True):
                if cached.length >= call.num_image_rows:
                    own = advance if row is None else advance.of_batch_rows(slice(row, row + 1))
                    cached.aim_whole(own, self._place(stream, call, call.whole, cached.length))
        return earlier if call.forecasts or self._is_static else []

    def _joint_length(self, layers: Mapping[str, list[KVCache]]) -> int:
        """Length of the joint sequence, as the last dense step had it."""
        joint = (layers[name] for name, (_, stream) in self._layers.items() if stream == "joint")
        return next(calls[0].length for calls in joint if calls)  # a guider may have attention of a layer left out

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

    def gather_root(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], of_image: Callable[[Any], Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the rows of the transformer's own arguments; no text rows where those are kept.

        Args:
            args, kwargs: of the transformer's call.
            of_image: takes an argument's rows of one image before that, if the call is of one.
        """
        call = self.current()
        assert call is not None
        bound = self._root_signature.bind_partial(self.root, *args, **kwargs)
        if of_image is not None:
            unbatched = self.token_plan.unbatched_arguments
            for argument in bound.arguments.keys() - unbatched:
                bound.arguments[argument] = of_image(bound.arguments[argument])
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
        call = self.current()
        if call is None or call.rows is None:
            return None
        if isinstance(output, torch.Tensor):
            return self._rows_of(output, chosen[0], call)
        parts = list(output)
        for index, select in chosen.items():
            parts[index] = self._rows_of(parts[index], select, call)
        return type(output)(parts)

    def _gather_result(self, select: TokenSelect, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(*args: Any, **kwargs: Any) -> Any:
            result, call = original(*args, **kwargs), self.current()
            return result if call is None or call.rows is None else self._rows_of(result, select, call)

        return method

    def _rows_of(self, value: Any, select: TokenSelect, call: Call) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._rows_of(part, select, call) for part in value)
        if isinstance(value, dict):
            return {key: self._rows_of(part, select, call) for key, part in value.items()}
        if not isinstance(value, torch.Tensor) or value.ndim <= select.dim:
            return value
        if select.is_picture:
            flat = value.flatten(2).transpose(1, 2)
            taken = self._rows_of(flat, TokenSelect(), call)
            return value if taken is flat else taken.transpose(1, 2).unsqueeze(-1)
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
        call = self.current()
        if call is None or call.rows is None:
            return None
        bound = signature.bind_partial(module, *args, **kwargs)
        bound.arguments[argument] = call.rows.scatter(bound.arguments[argument])
        return bound.args[1:], bound.kwargs

    def _scatter(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call = self.current()
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
        device = None if device is None else torch.empty(0, device=device).device  # "cuda" is one of them
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"kv_cache_device: got {config.kv_cache_device!r}, which PyTorch cannot use: {error}"
        ) from error
    return [KVStorage(dtype, device, keeps, operations, addresses) for keeps in shares]
