"""A GPU to test on where there is none: tensors that say "cuda" and are computed on the CPU.

Whatever asks a tensor for its device goes the way that it goes on a GPU; values and rounding are those of the CPU.
What would be an error on a GPU is one here (operations on tensors of two devices, generators of the wrong one), and
what would make the CPU wait for a GPU is noted: values that are asked for, copies between the devices that are not
asynchronous. Speed, memory, Triton's kernels, compiled blocks and CUDA graphs are not pretended.
"""

from __future__ import annotations

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

Tensor, aten = torch.Tensor, torch.ops.aten
DEVICE = torch.device("cuda", 0)
MOVES = (Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as)
GETS_VALUES = (
    Tensor.item,
    Tensor.tolist,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__contains__,
)
MAKES_FROM_VALUES = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
TAKES_INDICES = (Tensor.__getitem__, Tensor.__setitem__, Tensor.index_put_, Tensor.index_put, torch.index_put)
ATEN_GETS_VALUES = (  # inside of operations
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
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
        return run(func, args, kwargs or {}, Log())

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
    if func is Tensor.__getitem__ and not isinstance(args[0], Pretended):
        is_there = False  # of a tensor on the CPU, by a number on the GPU
    if not theirs and not is_there:
        return func(*args, **kwargs)
    if func in (Tensor.device.__get__, Tensor.is_cuda.__get__, Tensor.is_cpu.__get__):
        return {Tensor.device.__get__: DEVICE, Tensor.is_cuda.__get__: True}.get(func, False)
    if func is torch._has_compatible_shallow_copy_type:
        return False  # modules that are moved get new parameters
    if func in (Tensor.numpy, Tensor.__array__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
    log.num_operations += 1
    if func in MOVES:
        return _moved(func, args, kwargs, is_there, log)
    _check_devices(func, args, tensors)
    _check_generator(func, kwargs, is_there)
    _note_wait(func, args, kwargs, is_there, log)
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "cpu"}
    inner_args, inner_kwargs = tree_map(_unwrapped, (args, kwargs))
    with _Watch(log) if theirs else ExitStack():
        result = func(*inner_args, **inner_kwargs)
    if func is Tensor.__iter__:
        return iter([_wrapped(part, {}, is_there) for part in result])
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
        return None
    return DEVICE if isinstance(named, int) else torch.device(named)


def _moved(func: Any, args: Any, kwargs: dict[str, Any], is_there: bool, log: Log) -> Tensor:
    """``Tensor.to``, ``cpu`` or ``cuda``."""
    owner, given = args[0], (*args[1:], *kwargs.values())
    is_moved = isinstance(owner, Pretended) != is_there
    if is_moved and not _is_asynchronous(func, args, kwargs):
        log.wait(f"copied {'to' if is_there else 'from'} the GPU")
    inner = _unwrapped(owner)
    dtype = next((value.dtype for value in given if isinstance(value, Tensor)), inner.dtype)
    dtype = next((value for value in given if isinstance(value, torch.dtype)), dtype)
    layout = next((value for value in given if isinstance(value, torch.memory_format)), torch.preserve_format)
    result = inner.to(dtype, copy=is_moved or bool(kwargs.get("copy")), memory_format=layout)
    if result is inner:
        return owner
    return Pretended(result) if is_there else result


def _is_asynchronous(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    if "non_blocking" in kwargs:
        return bool(kwargs["non_blocking"])
    return any(value is True for value in args[1:4])


def _indices(func: Any, args: Any) -> list[Tensor]:
    if func not in TAKES_INDICES:
        return []
    indices = args[1] if isinstance(args[1], (tuple, list)) else [args[1]]
    return [index for index in indices if isinstance(index, Tensor)]


def _check_devices(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Numbers (tensors without dimensions) on the CPU go along with everything, and so do indices."""
    if func in (Tensor.copy_, Tensor.__setitem__, Tensor.data.__set__) or not any(
        isinstance(tensor, Pretended) for tensor in tensors
    ):
        return
    exempt = {id(index) for index in _indices(func, args)}
    if (
        func is Tensor.__getitem__
        and not isinstance(args[0], Pretended)
        and not any(t.dim() for t in _indices(func, args))
    ):
        return  # a number says which
    wrong = [tensor for tensor in tensors if not isinstance(tensor, Pretended) and id(tensor) not in exempt]
    wrong = [tensor for tensor in wrong if tensor.dim()]
    if wrong:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! "
            f"({_name(func)}; on the CPU: {[tuple(tensor.shape) for tensor in wrong]})"
        )


def _check_generator(func: Any, kwargs: dict[str, Any], is_there: bool) -> None:
    generator = kwargs.get("generator")
    if generator is not None and is_there and generator.device.type != "cuda":
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({_name(func)})")


def _note_wait(func: Any, args: Any, kwargs: dict[str, Any], is_there: bool, log: Log) -> None:
    what = None
    indices = _indices(func, args)
    if func in GETS_VALUES:
        what = f"asked for values ({_name(func)})"
    elif func in MAKES_FROM_VALUES and is_there:
        what = "made of values"
    elif any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        what = "taken by a mask"
    elif any(not isinstance(index, Pretended) for index in indices):
        what = "taken by indices on the CPU"
    elif func in (Tensor.copy_, Tensor.__setitem__):
        source = args[1] if func is Tensor.copy_ else args[2]
        is_moved = isinstance(source, Tensor) and isinstance(source, Pretended) != isinstance(args[0], Pretended)
        if is_moved and not _is_asynchronous(func, args[1:], kwargs):
            what = f"copied {'from' if isinstance(source, Pretended) else 'to'} the GPU"
    if what is not None:
        log.wait(what)


class _Watch(TorchDispatchMode):
    """Notes operations that ask for values inside of one that ran on the pretended GPU."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ATEN_GETS_VALUES:
            self._log.wait(f"asked for values ({func})")
        return func(*args, **(kwargs or {}))


def _name(func: Any) -> str:
    return resolve_name(func) or getattr(func, "__name__", str(func))


def _place() -> str:
    """File and function of the innermost frame outside of PyTorch, this file, and modes that let operations pass."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        is_passed = code.co_name in ("__torch_function__", "__torch_dispatch__")
        if not is_passed and "/torch/" not in code.co_filename and code.co_filename != __file__:
            return f"{re.split('/(?:site-packages|src)/', code.co_filename)[-1]}:{code.co_name}"
        frame = frame.f_back
    return "?"


class _Mode(TorchFunctionMode):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.pin_memory:
            if isinstance(args[0], Pretended):
                raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
            return args[0].clone()
        return run(func, args, kwargs or {}, self._log)


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


class _Event:
    """A CUDA event of a GPU that is always done."""

    def __init__(self, **_: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: _Event) -> float:
        return 1.0


STUBS: dict[str, Any] = {  # of torch.cuda
    "Event": _Event,
    "current_stream": lambda device=None: None,
    "current_device": lambda: 0,
    "device": lambda device: nullcontext(),
    "synchronize": lambda device=None: None,
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
    """``"cuda"`` is a device here: ``.to("cuda")``, ``torch.zeros(3, device="cuda")``, events and streams work."""
    log = Log()
    with ExitStack() as stack:
        for name, value in STUBS.items():
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
