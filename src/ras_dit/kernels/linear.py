"""When the weights of a linear layer are all there is to it."""

from __future__ import annotations

import torch
from torch.nn.modules import module as hooks_of_all

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_plain_linear(module: torch.nn.Module) -> bool:
    """Whether calling a module is ``x @ weight.T + bias`` and nothing else, so that a kernel may read its weights.

    Not plain are subclasses (peft's LoRA layers, bitsandbytes' quantised ones), weights of another kind (torchao's,
    distributed ones, eight-bit floats), parametrisations, hooks of the module or of all modules, and a ``forward``
    that was replaced on the instance (accelerate's offload does that). A layer inside a LoRA layer is plain by itself:
    ask the layer that the model calls, and not what is inside.

    Args:
        module: any.
    """
    if type(module) is not torch.nn.Linear or "forward" in vars(module):
        return False
    if any(getattr(module, name, None) for name in _HOOKS):
        return False
    if hooks_of_all._global_forward_hooks or hooks_of_all._global_forward_pre_hooks:
        return False
    bias = module._parameters.get("bias")
    if bias is None and getattr(module, "bias", None) is not None:
        return False
    return _is_plain(module._parameters.get("weight")) and (bias is None or _is_plain(bias))


def _is_plain(weight: torch.Tensor | None) -> bool:
    """A parameter of a floating type whose numbers are its own."""
    return (
        type(weight) is torch.nn.Parameter
        and type(weight.data) is torch.Tensor
        and weight.dtype in _DTYPES
        and weight.layout is torch.strided
        and weight.device.type != "meta"
    )
