"""What a plan costs before it runs: FLOPs from the transformer's dimensions, and the size of the K/V cache."""

from __future__ import annotations

from typing import Any

from ras_dit.models import TokenPlan
from ras_dit.plan import Cost, Plan


def plan_cost(plan: Plan, token_plan: TokenPlan, transformer: Any, num_text: int) -> Cost:
    """The cost of a plan for one row of the batch (one image, one guidance branch).

    Region steps count attention over full-length keys and the text stream in full, as they are computed; text tokens
    and the time embedding of a skipped step are not.

    Args:
        plan: steps and active counts.
        token_plan: formulas of the transformer class.
        transformer: its ``config`` is read.
        num_text: text tokens of the sequence.
    """
    total_tokens = plan.num_tokens
    dense = token_plan.step_flops(transformer, total_tokens, total_tokens, num_text)
    by_count = {
        count: token_plan.step_flops(transformer, count, total_tokens, num_text)
        for count in {step.num_active for step in plan if step.kind != "skip"}
    }
    total = sum(by_count[step.num_active] for step in plan if step.kind != "skip")
    shape = token_plan.attention_shape(transformer)
    element = next((p.element_size() for p in transformer.parameters()), 4)
    keeps_cache = any(step.captures for step in plan)
    cache = 2 * shape.num_layers * (total_tokens + num_text) * shape.kv_width * element if keeps_cache else 0
    return Cost(dense, total, cache)
