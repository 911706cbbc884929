"""Transformers of given dimensions with random weights, made without ever holding them in a wider type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


QUERY_SCALE = 2.5
"""Standard deviation of attention's scores, about: of N tokens some N / exp(its square) are then attended to."""
_QUERIES = ("to_q", "add_q_proj", "norm_q", "norm_added_q")  # where queries are normalised, the norm's gain counts


def empty_transformer(kind: Any, arguments: dict[str, Any], dtype: torch.dtype | None = None) -> Any:
    """A transformer without memory for its weights: enough to count them, and FLOPs.

    Args:
        kind: the class.
        arguments: of its constructor.
        dtype: of the weights, but for those that diffusers keeps in float32; None leaves them as they are made.
    """
    import torch
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = kind(**arguments).eval()
    for path, module in model.named_modules() if dtype is not None else ():
        for name, parameter in list(module.named_parameters(recurse=False)):
            chosen = torch.float32 if _stays_wide(model, f"{path}.{name}") else dtype
            setattr(module, name, torch.nn.Parameter(parameter.detach().to(chosen), requires_grad=False))
    return model


def random_transformer(kind: Any, arguments: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """A transformer with random weights on a device.

    Matrices keep the variance of what they multiply, biases and gains are drawn too, and queries are larger, so that
    attention picks some tokens out of many as in a trained model (over thousands of tokens it would average all of
    them to nothing): every layer then matters to the result, and a check of correctness has something to see. Parts
    that diffusers keeps in float32 are in float32.

    Args:
        kind: the class.
        arguments: of its constructor.
        device: where it goes.
        dtype: of its weights.
    """
    import torch

    model = empty_transformer(kind, arguments, dtype)
    generator = torch.Generator(device).manual_seed(0)
    for path, module in model.named_modules():
        scale = QUERY_SCALE if path.rpartition(".")[2] in _QUERIES else 1.0
        for name, parameter in list(module.named_parameters(recurse=False)):
            drawn = _draw(name, parameter.shape, device, parameter.dtype, generator).mul_(scale)
            setattr(module, name, torch.nn.Parameter(drawn, requires_grad=False))
        _move_buffers(module, device, dtype)
    return model


def _draw(name: str, shape: torch.Size, device: str, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    import torch

    empty = torch.empty(shape, device=device, dtype=dtype)
    if len(shape) < 2:
        is_gain = name == "weight"
        return empty.normal_(float(is_gain), 0.1, generator=generator)
    fan_in = empty[0].numel()
    return empty.normal_(0.0, fan_in**-0.5, generator=generator)


def _stays_wide(model: Any, path: str) -> bool:
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    return bool(set(kept) & set(path.split(".")))


def _move_buffers(module: Any, device: str, dtype: torch.dtype) -> None:
    for name, buffer in list(module.named_buffers(recurse=False)):
        is_saved = name not in module._non_persistent_buffers_set
        module._buffers[name] = buffer.to(device, dtype if is_saved and buffer.dtype.is_floating_point else None)


def weight_bytes(transformer: Any) -> int:
    """Bytes that a transformer's weights take (of an empty one: would take)."""
    return sum(parameter.numel() * parameter.element_size() for parameter in transformer.parameters())
