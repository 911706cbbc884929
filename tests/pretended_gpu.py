"""A GPU to test on where there is none: tensors that say "cuda" and are computed on the CPU.

Whatever asks a tensor for its device goes the way that it goes on a GPU; values and rounding are those of the CPU. Two
kinds of mistakes show that a CPU hides: operations on tensors of two devices (and generators of the wrong one) are
errors, and it is noted where the CPU would wait for a GPU, because it asks for values or copies from one to the other.
Speed, memory, kernels (those that a GPU lacks, too), autocast, compiled blocks and CUDA graphs are not pretended.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import ras_dit

Tensor, aten = torch.Tensor, torch.ops.aten
DEVICE = torch.device("cuda", 0)
SAYS = {
    Tensor.device.__get__: DEVICE,
    Tensor.is_cuda.__get__: True,
    Tensor.is_cpu.__get__: False,
    Tensor.get_device: 0,
    torch._has_compatible_shallow_copy_type: False,  # modules that are moved get new parameters
}
MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as)
NUMBERS = (Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__)
GETS_VALUES = (Tensor.item, Tensor.tolist, Tensor.__contains__, *NUMBERS)
ATEN_GETS_VALUES = (  # inside of operations
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.histc.default,
)
MAKES_FROM_VALUES = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
GETS_ROWS = (Tensor.__getitem__, Tensor.__setitem__)
TAKES_INDICES = (*GETS_ROWS, Tensor.index_put_, Tensor.index_put, torch.index_put)
TAKES_NO_NUMBERS = (  # tensors without dimensions have to be on the device, too
    torch.cat,
    torch.stack,
    torch.concat,
    torch.index_select,
    Tensor.index_select,
    torch.gather,
    Tensor.gather,
    torch.nn.functional.scaled_dot_product_attention,
)


class Pretended(Tensor):
    """A tensor that says that it is on a GPU; ``inner``, on the CPU, has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretended:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, Log())  # of what is outside of `pretended_gpu` nobody keeps a log

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} reached a pretended tensor past Python")


@dataclass
class Log:
    """What happened on the pretended GPU.

    Attributes:
        num_operations: how many ran on it.
        waits: where the CPU would have waited for it, in order: "file:function: what", and what ``moment`` said then.
        moment: asked at every wait.
    """

    num_operations: int = 0
    waits: list[tuple[str, Any]] = field(default_factory=list)
    moment: Callable[[], Any] = lambda: None

    def wait(self, what: str) -> None:
        self.waits.append((f"{_place()}: {what}", self.moment()))


def run(func: Any, args: Any, kwargs: dict[str, Any], log: Log) -> Any:
    """One operation by the rules of a GPU, computed on the CPU."""
    flat, _ = tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    theirs = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    device = _wanted_device(func, args, kwargs)
    is_there = bool(theirs) if device is None else device.type == "cuda"
    _check_generator(kwargs, is_there)
    if func in GETS_ROWS:
        args = (args[0], tree_map(lambda part: _with_numbers(part, log), args[1]), *args[2:])
    if not theirs and not is_there:
        return func(*args, **kwargs)
    if func in SAYS:
        return SAYS[func]
    if func in (Tensor.numpy, Tensor.__array__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
    log.num_operations += 1
    if func in MOVES:
        return _moved(args, kwargs, is_there, log)
    _check_devices(func, args, tensors)
    if (what := _why_waiting(func, args, kwargs, is_there)) is not None:
        log.wait(what)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "cpu"}
    inner_args, inner_kwargs = tree_map(_unwrapped, (args, kwargs))
    with _Watch(log) if theirs and func not in GETS_VALUES else nullcontext():
        result = func(*inner_args, **inner_kwargs)
    if func in (*GETS_ROWS, Tensor.copy_):
        is_there = isinstance(args[0], Pretended)
    if func is Tensor.__iter__:
        return iter([_wrapped(part, {}, is_there) for part in result])
    if func in MAKES_FROM_VALUES and not theirs:
        result = result.clone()  # as_tensor shares memory on one device alone
    owners = {id(tensor.inner): tensor for tensor in theirs}
    return tree_map(lambda value: _wrapped(value, owners, is_there), result)


def _wrapped(value: Any, owners: dict[int, Pretended], is_there: bool) -> Any:
    if not isinstance(value, Tensor) or not is_there:
        return value
    return owners[id(value)] if id(value) in owners else Pretended(value)


def _unwrapped(value: Any) -> Any:
    return value.inner if isinstance(value, Pretended) else value


def _wanted_device(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """The device that is asked for; None: that of the arguments."""
    if func is Tensor.cpu:
        return torch.device("cpu")
    if func is Tensor.cuda:
        return DEVICE
    named = kwargs.get("device")
    if named is None and func in (Tensor.to, Tensor.type_as):
        for value in args[1:2]:
            if isinstance(value, Tensor):
                return DEVICE if isinstance(value, Pretended) else value.device
            if isinstance(value, (str, int, torch.device)) and not isinstance(value, bool):
                named = value
    if named is None:
        is_of_values = func is torch.tensor and bool(args) and not isinstance(args[0], Tensor)
        return torch.device("cpu") if is_of_values else None
    return DEVICE if isinstance(named, int) else torch.device(named)


def _moved(args: Any, kwargs: dict[str, Any], is_there: bool, log: Log) -> Tensor:
    """``Tensor.to``, ``cpu``, ``cuda`` or ``type_as``."""
    owner, given = args[0], (*args[1:], *kwargs.values())
    inner = _unwrapped(owner)
    is_moved = isinstance(owner, Pretended) != is_there
    flags = [value for value in args[1:] if isinstance(value, bool)]  # non_blocking, copy
    is_asynchronous = kwargs.get("non_blocking", flags[0] if flags else False)
    if is_moved and inner.numel() and not (is_there and is_asynchronous and is_pinned(inner)):
        log.wait(f"copied {'to' if is_there else 'from'} the GPU")
    dtype = next((value.dtype for value in given if isinstance(value, Tensor)), inner.dtype)
    dtype = next((value for value in given if isinstance(value, torch.dtype)), dtype)
    layout = next((value for value in given if isinstance(value, torch.memory_format)), torch.preserve_format)
    result = inner.to(dtype, copy=is_moved or kwargs.get("copy", flags[1:] == [True]), memory_format=layout)
    if result is inner:
        return owner
    return Pretended(result) if is_there else result


def pinned(tensor: Tensor) -> Tensor:
    """A copy in pinned memory, with the strides of the tensor."""
    if isinstance(tensor, Pretended):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise RuntimeError("more than one element of the written-to tensor refers to a single memory location")
    copied = tensor.new_empty_strided(tensor.shape, tensor.stride()).copy_(tensor)
    copied.is_pretended_pinned = True  # type: ignore[attr-defined]
    return copied


def is_pinned(tensor: Tensor) -> bool:
    """Whether a GPU can fetch it while the CPU goes on: what has gaps is laid side by side in other memory first."""
    return getattr(tensor, "is_pretended_pinned", False) and tensor.is_contiguous()


def _with_numbers(index: Any, log: Log) -> Any:
    """A slice's ends as numbers."""
    if not isinstance(index, slice):
        return index
    ends = index.start, index.stop, index.step
    if any(isinstance(end, Pretended) for end in ends):
        log.wait("asked for values (slice)")
    return slice(*(int(end.inner) if isinstance(end, Pretended) else end for end in ends))


def _indices(func: Any, args: Any) -> list[Any]:
    """What rows are taken by: tensors, lists and arrays."""
    if func not in TAKES_INDICES:
        return []
    indices = args[1] if isinstance(args[1], tuple) or func not in GETS_ROWS else (args[1],)
    return [index for index in indices if isinstance(index, Tensor) or hasattr(index, "__len__")]


def _check_devices(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Numbers (tensors without dimensions) on the CPU go along with most operations, indices on the CPU with those that
    take some; rows that are written are found by indices on any device."""
    indices = [index for index in _indices(func, args) if isinstance(index, Tensor)]
    is_by_rows = any(index.dim() for index in indices)
    if func in (Tensor.copy_, Tensor.data.__set__) or (func in GETS_ROWS and not is_by_rows):
        return
    is_elsewhere = bool(args) and isinstance(args[0], Tensor) and not isinstance(args[0], Pretended)
    name = _name(func)
    is_in_place = func in TAKES_INDICES or (name.endswith("_") and not name.endswith("__"))
    exempt = {id(index) for index in indices} if func is Tensor.__setitem__ or not is_elsewhere else set()
    if func is Tensor.__setitem__ and isinstance(args[2], Tensor) and not args[2].dim():
        exempt.add(id(args[2]))  # copied, if need be
    tensors = [tensor for tensor in tensors if id(tensor) not in exempt]
    if not any(isinstance(tensor, Pretended) for tensor in tensors):
        return
    wrong = [tensor for tensor in tensors if not isinstance(tensor, Pretended)]
    if func not in TAKES_NO_NUMBERS and not (is_elsewhere and is_in_place):
        wrong = [tensor for tensor in wrong if tensor.dim()]
    if wrong:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! "
            f"({name}; on the CPU: {[tuple(tensor.shape) for tensor in wrong]})"
        )


def _check_generator(kwargs: dict[str, Any], is_there: bool) -> None:
    generator, needed = kwargs.get("generator"), "cuda" if is_there else "cpu"
    if generator is not None and generator.device.type != needed:
        raise RuntimeError(f"Expected a '{needed}' device type for generator but found '{generator.device.type}'")


def _why_waiting(func: Any, args: Any, kwargs: dict[str, Any], is_there: bool) -> str | None:
    indices = _indices(func, args)
    source = args[-1] if func is Tensor.__setitem__ else args[1] if func is Tensor.copy_ else None
    if func in GETS_VALUES:
        return f"asked for values ({_name(func)})"
    if func in MAKES_FROM_VALUES and not any(isinstance(value, Pretended) for value in args[:1]):
        return "made of values"
    if any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices):
        is_filled = func is Tensor.__setitem__ and not (isinstance(source, Tensor) and source.dim())
        return None if is_filled else "taken by a mask"
    if any(isinstance(index, Pretended) != isinstance(args[0], Pretended) for index in indices):
        return "taken by indices on another device"
    if isinstance(source, Tensor) and isinstance(source, Pretended) != isinstance(args[0], Pretended):
        is_asynchronous = kwargs.get("non_blocking", len(args) > 2 and func is Tensor.copy_ and args[2])
        if not (isinstance(args[0], Pretended) and is_asynchronous and is_pinned(source)):
            return f"copied {'from' if isinstance(source, Pretended) else 'to'} the GPU"
    return None


class _Watch(TorchDispatchMode):
    """Notes operations that ask for values inside of one that ran on the pretended GPU."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ATEN_GETS_VALUES and kwargs.get("output_size") is None:
            self._log.wait(f"asked for values ({func})")
        return func(*args, **kwargs)


def _name(func: Any) -> str:
    return resolve_name(func) or getattr(func, "__name__", str(func))


TORCH = os.path.dirname(torch.__file__) + os.sep
OURS = os.path.dirname(ras_dit.__file__) + os.sep
STEPS_IN = ("forward", "__call__", "step", "set_timesteps")  # of models, processors, pipelines and schedulers


def _place() -> str:
    """File and function that an operation belongs to: of the frames outside of PyTorch, this file, and modes that let
    operations pass, the innermost, or the nearest one of ours that called helpers of diffusers."""
    frame, innermost = sys._getframe(1), None
    while frame is not None:
        code = frame.f_code
        is_passed = code.co_name in ("__torch_function__", "__torch_dispatch__") or code.co_filename == __file__
        if not is_passed and not code.co_filename.startswith(TORCH):
            here = f"{re.split('/(?:site-packages|src)/', code.co_filename)[-1]}:{code.co_name}"
            if code.co_filename.startswith(OURS):
                return here
            innermost = innermost or here
            if code.co_name in STEPS_IN:
                break
        frame = frame.f_back
    return innermost or "?"


CPUGenerator = torch.Generator


class _AnyGenerator(type(torch.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, CPUGenerator)


class Generator(CPUGenerator, metaclass=_AnyGenerator):
    """``torch.Generator``, on the pretended GPU, too; it draws what one of the CPU draws."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls)
        made._is_there = torch.device(device).type == "cuda"
        return made

    @property
    def device(self) -> torch.device:
        return DEVICE if self._is_there else torch.device("cpu")


class _Mode(TorchFunctionMode):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return pinned(args[0]) if func is Tensor.pin_memory else run(func, args, kwargs or {}, self._log)


def _stubs(log: Log) -> dict[str, Any]:
    """What stands in for functions and classes of ``torch.cuda``."""

    class Event:
        """An event of a GPU that is always done."""

        def __init__(self, **_: Any) -> None:
            pass

        def record(self, stream: Any = None) -> None:
            pass

        def synchronize(self) -> None:
            log.wait("waited for an event")

        def elapsed_time(self, other: Event) -> float:
            return 1.0

    return {
        "Event": Event,
        "current_stream": lambda device=None: None,
        "current_device": lambda: 0,
        "device": lambda device: nullcontext(),
        "synchronize": lambda device=None: log.wait("waited for the GPU"),
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: "pretended",
        "mem_get_info": lambda device=None: (2**37, 2**37),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 1,
        "reset_peak_memory_stats": lambda device=None: None,
    }


@contextmanager
def pretended_gpu() -> Iterator[Log]:
    """``"cuda"`` is a device here: ``.to("cuda")``, ``torch.zeros(3, device="cuda")``, generators and events work."""
    log = Log()
    with ExitStack() as stack:
        for name, value in _stubs(log).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(_Mode(log))
        yield log


def on_gpu(value: Any) -> Any:
    """Tensors, also in lists and dictionaries, moved to the pretended GPU; everything else as it is."""
    return tree_map(lambda leaf: leaf.to(DEVICE) if isinstance(leaf, Tensor) else leaf, value)


def on_cpu(value: Any) -> Any:
    """The values of pretended tensors, also in lists and dictionaries."""
    return tree_map(_unwrapped, value)
