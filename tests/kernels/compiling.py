"""Compiles every kernel for GPUs that are not here; a script, because Triton must not be told to interpret.

The arguments of each launch are caught as the public functions make them, and given to Triton's compiler.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ras_dit.kernels import triton_choice, triton_history, triton_linear, triton_merge

POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


def caught(kernel: Any, launch: Callable[[], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a function gives to its kernel."""
    launches: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    kernel.run = lambda *args, **kwargs: launches.append((args, kwargs))
    try:
        launch()
    finally:
        del kernel.run
    (one,) = launches
    return one


def compile_for(capability: int, kernel: Any, launch: Callable[[], Any]) -> None:
    args, kwargs = caught(kernel, launch)
    options = {name: kwargs[name] for name in ("num_warps", "num_stages") if name in kwargs}
    given = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
    signature, constants = {}, {}
    for parameter in kernel.params:
        value = given[parameter.name]
        is_one = isinstance(value, int) and value == 1  # Triton makes those constant
        if parameter.is_constexpr or is_one:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=target, options=options)
    assert compiled.asm["cubin"]
    print("compiled", kernel.fn.__name__, capability)


def launches(dtype: torch.dtype) -> list[tuple[Any, Callable[[], Any]]]:
    """A kernel and a call of its function, for every form."""
    rows = torch.arange(7)[None]
    key, kept = torch.zeros(2, 7, 4, 64, dtype=dtype).transpose(1, 2), torch.zeros(2, 4, 9, 64, dtype=dtype)
    table, weight = torch.zeros(7, 64), torch.zeros(64, 64, dtype=dtype)
    turned = {"norm_eps": 1e-6, "norm_weight": weight[0], "cos": table, "sin": table}
    noise, out = torch.zeros(3, 2, 4096, 64), torch.zeros(2, 9, 64, dtype=dtype)
    tokens, is_active = noise[0].to(dtype), torch.zeros(2, 4096, dtype=torch.bool)
    sigmas = torch.zeros(3, 2, 4096)
    where = (0.3, 0.3, 2, 0.8, 1.0, 0.2, dtype)
    merge, history = triton_merge.merge_rows, triton_history.record_and_fill
    return [
        (triton_merge._merge_kernel, lambda: merge(kept, kept, key, key, rows)),
        (triton_merge._merge_kernel, lambda: merge(kept, kept, key, key, rows, **turned)),
        (triton_merge._merge_kernel, lambda: merge(kept, kept, key, key, rows, **turned, is_interleaved=False)),
        (
            triton_linear._linear_kernel,
            lambda: triton_linear.linear_scatter(key[:, 0], weight, weight[0], rows, out),
        ),
        (triton_choice._error_kernel, lambda: triton_choice.predicted_error(noise.to(dtype), sigmas, 0.3)),
        (triton_choice._top_k_kernel, lambda: triton_choice.top_k(sigmas[0].to(dtype), 1024)),
        (triton_history._history_kernel, lambda: history(noise, sigmas, tokens, is_active, *where)),
        (triton_history._history_kernel, lambda: history(noise, sigmas, None, None, *where)),
    ]


def main() -> None:
    for capability, dtype in ((80, torch.bfloat16), (90, torch.bfloat16), (90, torch.float32)):
        for kernel, launch in launches(dtype):
            compile_for(capability, kernel, launch)


if __name__ == "__main__":
    sys.exit(main())
