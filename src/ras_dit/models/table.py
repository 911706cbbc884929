"""The table of supported transformers, for the terminal and for docs/models.md."""

from __future__ import annotations

from ras_dit.models import REFUSED, TOKEN_PLANS
from ras_dit.models.plan import TokenPlan

_LAYOUTS = {"image_first": "image, then text", "text_first": "text, then image"}


def layout_of(plan: TokenPlan) -> str:
    """What its attention is over, in words."""
    return _LAYOUTS[plan.layout] if "joint" in plan.attention.values() else "image alone"


def reuse_of(plan: TokenPlan) -> str:
    """What region steps can do without computing, in words."""
    return ", ".join(["text"] * (plan.text_rows is not None) + ["references"] * plan.reuses_references)


def markdown() -> str:
    """The whole of docs/models.md."""
    lines = [
        "# Supported transformers",
        "",
        "Written by `make readme` from the registry in `src/ras_dit/models` (`ras-dit models` prints the same).",
        "Every row is held to `tests/test_families.py`, on real pipelines with tiny random weights: ratio 1 and the",
        "pipeline after `disable` are bit-equal to the untouched one, and a region step over fresh keys and values",
        "gives the dense result with difference 0.0 (HiDream: 5e-6). A pipeline is listed when it was run so. A",
        "subclass of a listed transformer takes its row. How to add one: [adding-a-model.md](adding-a-model.md).",
        "",
        "*Images*: how region steps compute a batch whose images have an active set each: *together*, in one call of",
        "the transformer, or, where position tables have no batch dimension, *in turn*, one call per image. With",
        "`shared_active_set=True` all images have one set, chosen by their mean score, and go together.",
        "",
        "*Reuse*: what region steps can do without computing: text (`text_reuse`), reference pictures",
        "(`reference_reuse`).",
        "",
        "| transformer | models | pipelines | attention over | images | reuse | caveats |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, plan in TOKEN_PLANS.items():
        images = "together" if plan.has_batched_positions else "in turn"
        cells = [f"`{name}`", plan.family, ", ".join(plan.pipelines), layout_of(plan), images, reuse_of(plan)]
        cells.append(" ".join(plan.caveats))
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "## Refused", "", "| transformer | reason |", "| --- | --- |"]
    lines += [f"| `{name}` | {reason} |" for name, reason in REFUSED.items()]
    return "\n".join(lines) + "\n"
