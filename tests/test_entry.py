"""What stands in front of the blocks: places are added to computed rows alone, tables cropped, idle masks left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ras_dit
from families import lumina_next
from ras_dit import attention
from ras_dit.attention import LayerSeam
from ras_dit.cache import KVCache
from ras_dit.rows import RowIndex
from tiny import REGION, inputs, run, tiny_pipeline


def run_lumina(pipe: Any) -> torch.Tensor:
    with torch.no_grad():
        return pipe(**lumina_next.call()).images


def test_places_are_added_to_computed_rows_alone() -> None:
    pipe = tiny_pipeline()
    embed, added = pipe.transformer.pos_embed, []
    table = torch.arange(8 * 12.0).repeat(32, 1).T[None]  # tells where a row comes from

    def numbered(_height: int, _width: int) -> torch.Tensor:
        return table

    embed.cropped_pos_embed = numbered
    embed.proj.weight.data.zero_()
    embed.proj.bias.data.zero_()
    embed.register_forward_hook(lambda module, args, output: added.append(output))
    with ras_dit.accelerate(pipe, REGION) as handle:
        run(pipe, **inputs(batch=2))
        steps = handle.trace.steps
    for step, rows in zip(steps, added, strict=True):
        if step.active is None:
            assert torch.equal(rows, table.expand(4, -1, -1))
        else:
            assert rows.is_contiguous()
            assert torch.equal(rows[..., 0], step.active.repeat(2, 1).float()), "each image has its own"
    assert embed.cropped_pos_embed is numbered, "the undo leaves what was there"


def test_without_a_table_to_crop_runs_are_dense() -> None:
    pipe = tiny_pipeline()
    pipe.transformer.register_to_config(pos_embed_max_size=None)
    call = inputs(height=8, width=8)
    dense = run(pipe, **call)
    with pytest.warns(ras_dit.RASWarning, match="pos_embed_max_size"), ras_dit.accelerate(pipe, REGION) as handle:
        assert torch.equal(run(pipe, **call), dense)
    assert handle.summary().num_dense == 10


def test_luminas_rotary_table_is_cropped_in_front_of_the_copy_to_the_device() -> None:
    pipe = lumina_next.build()
    dense = run_lumina(pipe)
    shapes: list[torch.Size] = []
    embedder = pipe.transformer.patch_embedder
    with ras_dit.accelerate(pipe, ras_dit.RASConfig(sample_ratio=1.0)):
        seen = embedder.register_forward_pre_hook(lambda module, args: shapes.append(args[1].shape))
        assert torch.equal(run_lumina(pipe), dense)
    assert {tuple(shape[:2]) for shape in shapes} == {(4, 6)}
    shapes.clear()
    assert torch.equal(run_lumina(pipe), dense)
    seen.remove()
    assert min(min(shape[:2]) for shape in shapes) > 6, "undone"


def test_luminas_mask_hides_nothing() -> None:
    pipe = lumina_next.build()
    masks: list[torch.Tensor] = []
    pipe.transformer.patch_embedder.register_forward_hook(lambda module, args, output: masks.append(output[1]))
    run_lumina(pipe)
    assert masks
    assert all(bool(mask.all()) for mask in masks)


@pytest.mark.parametrize("hides_nothing", [True, False])
def test_a_mask_that_hides_nothing_is_left_out_off_the_cpu(
    hides_nothing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(On "meta", which computes nothing.)"""
    masks = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def seen(query: Any, key: Any, value: Any, mask: Any = None, *args: Any, **kwargs: Any) -> torch.Tensor:
        masks.append(mask)
        return attend(query, key, value, mask, *args, **kwargs)

    monkeypatch.setattr(attention.functional, "scaled_dot_product_attention", seen)
    layer = LayerSeam(hides_nothing=hides_nothing)
    kept = torch.empty(2, 3, 10, 8, device="meta")
    mask = torch.ones(2, 1, 10, 10, dtype=torch.bool, device="meta")
    cached = KVCache(kept, kept, mask)
    cached.aim(RowIndex(torch.tensor([[1, 4, 7]] * 2, device="meta"), 10, is_shared=True))
    layer.aim("region", [cached])
    rows = torch.empty(2, 3, 3, 8, device="meta")
    assert layer.attend(rows, rows, rows, mask[:, :, :3]).shape == rows.shape
    assert (masks[0] is None) == hides_nothing
