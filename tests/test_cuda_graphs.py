"""What PyTorch's CUDA graphs demand of a run with ``static_memory``, watched on a CPU.

`PlayedGraphs` stands in for a device: like PyTorch's graph trees it records a block anew whenever a tensor that counts
as static lies elsewhere, and what a block returned is gone when the next transformer call is announced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.cudagraph_trees import MarkStepBox

import ras_dit
from checks import compiling
from families import all_cases
from families.case import FamilyCase
from ras_dit import RASConfig
from test_compile import blocks_of, one_of_every_kind

CONFIG = RASConfig(sample_ratio=0.25, warmup_steps=3, static_memory=True)
ALL = {case.name: case for case in all_cases()}


class PlayedGraphs:
    """A backend of ``torch.compile`` that records nothing, and says how often a device would have."""

    def __init__(self) -> None:
        self.backend = aot_autograd(fw_compiler=self._compile, keep_inference_input_mutations=True)
        self.recorded: set[tuple[object, ...]] = set()
        self._num_graphs = 0
        self._returned: list[torch.Tensor] = []
        self._call = MarkStepBox.mark_step_counter
        self.num_calls = 0

    def _compile(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        metadata = torch._guards.TracingContext.get().fw_metadata
        assert metadata is not None
        static, number = list(metadata.static_input_indices), self._num_graphs
        written = {index for index, info in enumerate(metadata.input_info) if info.mutates_data}
        assert written <= set(static), "a block that writes to anything else runs without a graph"
        self._num_graphs += 1

        def run(*args: Any) -> Any:
            self._end_earlier_calls()
            tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
            shapes = tuple(tensor.shape for tensor in tensors)
            self.recorded.add((number, shapes, *(args[index].data_ptr() for index in static)))
            outputs = graph(*args)
            held = {tensor.untyped_storage().data_ptr() for tensor in tensors}
            own = [each for each in outputs if isinstance(each, torch.Tensor)]
            self._returned += [each for each in own if each.untyped_storage().data_ptr() not in held]
            return outputs

        return make_boxed_func(run)

    def _end_earlier_calls(self) -> None:
        if self._call == MarkStepBox.mark_step_counter:
            return
        self._call = MarkStepBox.mark_step_counter
        self.num_calls += 1
        for tensor in self._returned:
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
        self._returned.clear()


def picture(case: FamilyCase, pipe: Any, batch: int) -> torch.Tensor:
    torch.manual_seed(0)
    return case.output(pipe(**case.call(batch=batch, height=6, width=8)))


@pytest.mark.parametrize(
    ("name", "options", "batch"),
    [
        ("sd3", {}, 2),
        ("sd3", {"warmup_steps": 1, "kv_cache_layers": 0.5}, 1),
        ("sd3", {"kv_forecast": 0.8, "kv_cache_dtype": "bfloat16"}, 2),
        ("qwen-image", {"text_reuse": True}, 1),
        ("lumina2", {}, 1),
        ("prx", {}, 1),
        ("wan", {}, 1),
        ("kandinsky5", {}, 1),
    ],
)
@torch.no_grad()
def test_region_steps_are_recorded_once(name: str, options: dict[str, Any], batch: int) -> None:
    case = ALL[name]
    pipe = case.build()
    config = CONFIG.replace(**options)
    with ras_dit.accelerate(pipe, config):
        expected = picture(case, pipe, batch)
    graphs, begun = PlayedGraphs(), [0]
    pipe.transformer.register_forward_pre_hook(lambda *_: begun.append(len(graphs.recorded)))
    with compiling(limit=64):
        for block in one_of_every_kind(blocks_of(pipe.transformer)):
            block.compile(fullgraph=True, backend=graphs.backend)
        with ras_dit.accelerate(pipe, config) as handle:
            outputs = [picture(case, pipe, batch) for _ in range(2)]  # the second may choose among graphs otherwise
            num_recorded, num_calls = len(graphs.recorded), len(begun) - 1
            outputs.append(picture(case, pipe, batch))
            assert len(graphs.recorded) == num_recorded
            graphs.recorded.clear()
            begun.clear()
            outputs.append(picture(case, pipe, batch))
    for output in outputs:
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    assert graphs.num_calls == 2 * num_calls
    kinds = [step.kind for step in handle.trace.steps]
    per_step = len(begun) // len(kinds)
    second_region = kinds.index("region") + 1
    assert set(kinds[second_region:]) == {"region"}
    assert len(set(begun[second_region * per_step :])) == 1, "a region step recorded what the one before it had"
    assert len(graphs.recorded) == begun[-1]
