"""torch.compile of the repeated blocks, whole graphs only, on one pipeline of every supported transformer class."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor_config
from torch._inductor.utils import run_and_get_code
from torch.nn import functional

import ras_dit
from checks import compiling
from families import all_cases, one_case_per_class
from families.case import FamilyCase
from ras_dit import RASConfig
from ras_dit.cache import KVCache
from ras_dit.models import token_plan_of
from ras_dit.remarks import RASWarning
from ras_dit.rows import RowIndex

CONFIG = RASConfig(sample_ratio=0.25, warmup_steps=2, refresh_steps=(4,))


CASES = dict(one_case_per_class())
BOTH, TEXT = {"text_reuse": True, "reference_reuse": True}, {"text_reuse": True}
REUSING = {
    "flux-kontext": BOTH,
    "flux2-references": BOTH,
    "qwen-image-edit": BOTH,
    "hunyuan-image": TEXT,
    "z-image": TEXT,
}
CASES |= {case.name: case for case in all_cases() if case.name in REUSING}
WITH_FORECAST = ("SD3Transformer2DModel", "FluxTransformer2DModel", "LuminaNextDiT2DModel", "ZImageTransformer2DModel")
COMPILED_BEFORE = ("WanTransformer3DModel", "ZImageTransformer2DModel", "Lumina2Transformer2DModel")
"""Models with hooks on their blocks that run dense once, compiled, before RAS puts those on."""
THOROUGH = {*WITH_FORECAST, *REUSING}
"""Traced down to the operations, with dense steps that keep nothing too, and once more after RAS is gone; the graphs of
the others run as Python gave them. Every block is compiled of those with a forecast, of the rest one of every kind."""
# its attention picks text tokens by a mask: no whole graph, without RAS either
CASES.pop("MochiTransformer3DModel", None)


def blocks_of(transformer: Any) -> list[torch.nn.Module]:
    """The repeated blocks: what holds an attention module that a token plan names."""
    names = {name.rpartition(".")[0] for name in token_plan_of(transformer).attention_modules(transformer)}
    return [transformer.get_submodule(name) for name in sorted(names)]


def one_of_every_kind(blocks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """The first block of every class and set of children, such as a last one that returns no text."""
    kinds = {(type(block), tuple(name for name, _ in block.named_children())): block for block in reversed(blocks)}
    return list(kinds.values())


def run(case: FamilyCase, pipe: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return case.output(pipe(**case.call(batch=1, height=6, width=8)))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_blocks_compile_whole_and_once_per_shape(name: str) -> None:
    case = CASES[name]
    pipe = case.build()
    dense = run(case, pipe)
    config = CONFIG if name in THOROUGH else CONFIG.replace(warmup_steps=1)  # then every dense step fills the cache
    config = config.replace(kv_forecast=0.8) if name in WITH_FORECAST else config
    config = config.replace(**REUSING.get(name, {}))
    with ras_dit.accelerate(pipe, config):
        fast = run(case, pipe)
    counter = CompileCounterWithBackend("aot_eager" if name in THOROUGH else "eager")
    with compiling():
        blocks = blocks_of(pipe.transformer)
        for block in blocks if name in WITH_FORECAST else one_of_every_kind(blocks):
            block.compile(fullgraph=True, backend=counter)
        if name in COMPILED_BEFORE:
            assert torch.allclose(run(case, pipe), dense, atol=1e-4)
        with ras_dit.accelerate(pipe, config):
            assert torch.allclose(run(case, pipe), fast, atol=1e-4)
            num_graphs = counter.frame_count
            assert num_graphs > 0
            assert torch.allclose(run(case, pipe), fast, atol=1e-4)
            assert counter.frame_count == num_graphs, "nothing is compiled again for a second picture of the shape"
        if name in THOROUGH:
            assert torch.allclose(run(case, pipe), dense, atol=1e-4)


@torch.no_grad()
def test_frozen_weights_leave_no_region_steps() -> None:
    """PyTorch would freeze cached keys and values with them; plans that skip steps keep none."""
    case = CASES["SD3Transformer2DModel"]
    pipe = case.build()
    dense = run(case, pipe)
    skipping = RASConfig.preset("balanced")
    with ras_dit.accelerate(pipe, skipping):
        skipped = run(case, pipe)
    assert not torch.allclose(skipped, dense, atol=1e-4)
    torch.compiler.reset()
    try:
        with inductor_config.patch(freezing=True):
            for block in blocks_of(pipe.transformer):
                block.compile(fullgraph=True, backend="eager")
            with pytest.warns(RASWarning, match="frozen weights"), ras_dit.accelerate(pipe, CONFIG) as handle:
                assert torch.allclose(run(case, pipe), dense, atol=1e-4)
            assert handle.summary().num_dense == handle.summary().num_steps
            with ras_dit.accelerate(pipe, skipping) as handle:
                assert torch.allclose(run(case, pipe), skipped, atol=1e-4)
            assert not handle.summary().notes
        with ras_dit.accelerate(pipe, CONFIG) as handle:
            run(case, pipe)
        assert handle.summary().num_dense < handle.summary().num_steps
    finally:
        torch.compiler.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("is_shared", [True, False])
@torch.no_grad()
def test_compiled_rows_are_written_in_place(is_shared: bool) -> None:
    """Inductor makes no copy of the whole cache: a second write into it would have it make one."""
    shape = (2, 3, 77, 16)
    key, value = torch.randn(shape), torch.randn(shape)
    cached = KVCache(key.clone(), value.clone())
    active = torch.tensor([[1, 5, 40], [1, 5, 40] if is_shared else [0, 7, 69]])
    rows = RowIndex(active, num_tokens=70, is_shared=is_shared)
    cached.aim(rows)
    fresh = torch.randn(2, 3, 10, 16)

    def attend(query: torch.Tensor, fresh_key: torch.Tensor, fresh_value: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, *cached.merge(fresh_key, fresh_value))

    torch.compiler.reset()
    try:
        _, (code,) = run_and_get_code(torch.compile(attend, fullgraph=True), fresh, fresh, fresh)
    finally:
        torch.compiler.reset()
    assert "empty_strided_cpu" in code, "the code is what it is taken for"
    assert "empty_strided_cpu((2, 3, 77, 16)" not in code
    expected = key.clone()
    for row in range(2):
        expected[row, :, torch.cat([active[row], torch.arange(70, 77)])] = fresh[row]
    assert torch.equal(cached.key, expected)
