"""The pure parts: token order, importance, selection, forecast and cache, checked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ras_dit import TokenGrid, Trace
from ras_dit.attention import size_of_none
from ras_dit.cache import KVCache
from ras_dit.forecast import TokenHistory
from ras_dit.importance import displacement_metric, predicted_error, reference_starved, starved
from ras_dit.models.plan import grid_of_ids
from ras_dit.rows import RowIndex
from ras_dit.selection import drop_ends, membership, top_k
from ras_dit.trace import StepTrace

sizes = st.integers(1, 7)


@given(sizes, sizes, st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_patchify_and_back(height: int, width: int, patch: int, channels: int, batch: int) -> None:
    grid = TokenGrid(height, width, patch)
    latents = torch.randn(batch, channels, height * patch, width * patch)
    tokens = grid.patchify(latents)
    assert tokens.shape == (batch, grid.num_tokens, channels * patch * patch)
    assert torch.equal(grid.unpatchify(tokens), latents)
    row, column = height - 1, width // 2
    block = latents[0, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    assert torch.equal(tokens[0, row * width + column], block.flatten())
    assert TokenGrid.of_latents(latents, patch) == grid


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize(
    "form", ["contiguous", "a channel apart", "a pixel off", "channels last", "every second pixel"]
)
def test_noise_is_cut_up_alike_however_it_lies_in_memory(dtype: torch.dtype, patch: int, form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(2, 6, 3 * patch, 10 * patch + 1, generator=generator).to(dtype)
    noise = {
        "contiguous": wide[..., : 5 * patch].contiguous(),
        "a channel apart": wide[:, ::2, :, : 5 * patch],
        "a pixel off": wide[..., 1 : 5 * patch + 1],
        "channels last": wide[..., : 5 * patch].contiguous(memory_format=torch.channels_last),
        "every second pixel": wide[..., : 10 * patch : 2],
    }[form]
    grid = TokenGrid(3, 5, patch)
    tokens = grid.patchify(noise)
    blocks = noise.unfold(2, patch, patch).unfold(3, patch, patch)  # [B, C, 3, 5, p, p]
    assert torch.equal(tokens, blocks.permute(0, 2, 3, 1, 4, 5).reshape(2, 15, -1))
    assert tokens.dtype == dtype
    assert torch.equal(grid.unpatchify(tokens), noise)
    assert torch.equal(grid.unpatchify(torch.cat([tokens, tokens], dim=-1)[..., : tokens.shape[-1]]), noise)


def test_the_papers_metrics_by_hand() -> None:
    grid = TokenGrid(1, 2, 2)
    latents = torch.zeros(1, 2, 2, 4)
    latents[0, 0, 0, 0], latents[0, 1, 0, 0] = 3.0, 1.0  # one pixel of token 0: std sqrt(2), norm sqrt(10)
    assert displacement_metric(latents, grid, "std").tolist() == [pytest.approx([math.sqrt(2) / 4, 0.0])]
    assert displacement_metric(latents, grid, "l2norm").tolist() == [pytest.approx([math.sqrt(10) / 4, 0.0])]


def test_starvation_lowers_the_metric_and_the_authors_raises_it() -> None:
    metric, age = torch.ones(1, 2), torch.tensor([[0, 3]])
    assert starved(metric, age, 0.5)[0].tolist() == pytest.approx([1.0, math.exp(-1.5)])
    assert reference_starved(metric, age, 0.5)[0].tolist() == pytest.approx([1.0, math.exp(1.5)])


def test_predicted_error_by_hand() -> None:
    history = TokenHistory(2)
    history.record(torch.tensor([[[0.0], [0.0]]]), 1.0)
    assert predicted_error(history, 0.5).tolist() == [[0.0, 0.0]]
    history.record(torch.tensor([[[3.0], [1.0]]]), 0.9, torch.tensor([[True, False]]))
    history.record(torch.tensor([[[9.0], [4.0]]]), 0.8, torch.tensor([[False, True]]))
    # token 0: slope 3 / .1, .3 since .9 -> .6 away from .3; token 1: slope 4 / .2, .5 since .8
    assert predicted_error(history, 0.3)[0].tolist() == pytest.approx([3 / 0.1 * 0.6, 4 / 0.2 * 0.5])


def test_selection_by_hand() -> None:
    score = torch.tensor([[5.0, 1.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_k(score, 2).tolist() == [[0, 2], [0, 1]]
    assert drop_ends(score, 0, 2).tolist() == [[1, 2], [0, 1]]
    assert drop_ends(score, 1, 1).tolist() == [[2, 3], [1, 2]]
    assert membership(torch.tensor([[0, 2], [1, 3]]), 4).tolist() == [
        [True, False, True, False],
        [False, True, False, True],
    ]


@given(st.integers(1, 4), st.integers(2, 60), st.integers(0, 2**31), st.data())
def test_the_highest_scores_are_taken_or_those_between_both_ends(
    batch: int, num_tokens: int, seed: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(batch, num_tokens, generator=generator).argsort(dim=1).float()  # no two are alike
    num_active = data.draw(st.integers(1, num_tokens))
    low = data.draw(st.integers(0, num_tokens - num_active))
    high = num_tokens - num_active - low
    assert torch.equal(top_k(score, num_active), score.topk(num_active).indices.sort().values)
    between = score.topk(num_tokens - low).indices[:, high:].sort().values
    assert torch.equal(drop_ends(score, low, high), between)
    for row, ids in zip(membership(between, num_tokens), between.tolist(), strict=True):
        assert row.nonzero().flatten().tolist() == ids


@pytest.mark.parametrize("order", [0, 1, 2])
def test_forecasts_are_exact_for_polynomials_with_per_token_times(order: int) -> None:
    def curve(sigma: float) -> torch.Tensor:
        powers = torch.stack([torch.full((2, 3), sigma**k) for k in range(order + 1)], dim=-1)
        return (powers * torch.tensor([[2.0, -3.0, 5.0][: order + 1]])).sum(-1, keepdim=True)

    history = TokenHistory(order + 1)
    history.record(curve(1.0), 1.0)
    history.record(curve(0.9), 0.9)
    history.record(curve(0.8), 0.8)
    history.record(curve(0.7), 0.7, torch.tensor([[True, False, True], [False, True, False]]))
    history.record(curve(0.6), 0.6, torch.tensor([[True, True, False], [False, False, False]]))
    torch.testing.assert_close(history.forecast(0.5, order, 1.0), curve(0.5), atol=1e-4, rtol=1e-4)


def test_a_forecast_uses_the_order_that_the_points_allow() -> None:
    history = TokenHistory(3)
    history.record(torch.full((1, 2, 1), 1.0), 1.0)
    assert history.forecast(0.5, 2, 1.0).flatten().tolist() == [1.0, 1.0]
    history.record(torch.full((1, 2, 1), 2.0), 0.9, torch.tensor([[True, False]]))
    assert history.forecast(0.8, 2, 1.0).flatten().tolist() == pytest.approx([3.0, 1.0])
    assert history.forecast(0.8, 2, 0.5).flatten().tolist() == pytest.approx([2.5, 1.0])
    history.record(torch.full((1, 2, 1), 7.0), 0.9)  # a second value at the same sigma replaces the first (Heun)
    assert history.forecast(0.9, 2, 1.0).flatten().tolist() == [7.0, 7.0]
    assert history.forecast(0.8, 1, 1.0).flatten().tolist() == pytest.approx([13.0, 13.0])


@pytest.mark.parametrize("is_shared", [True, False])
def test_rows_in_and_out(is_shared: bool) -> None:
    active = torch.tensor([[0, 2, 5]] * 2) if is_shared else torch.tensor([[0, 2, 5], [1, 2, 3]])
    rows = RowIndex(active, 6, is_shared)
    tokens = torch.randn(2, 6, 4)
    taken = rows.gather(tokens)
    assert torch.equal(taken, tokens.gather(1, active[..., None].expand(-1, -1, 4)))
    assert torch.equal(taken, rows.gather(tokens.transpose(1, 2).contiguous().transpose(1, 2)))
    full = rows.scatter(taken)
    expected = torch.where(membership(active, 6)[..., None], tokens, torch.zeros_like(tokens))
    assert torch.equal(full, expected)


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("offset", [0, 2, torch.tensor([1, 2])], ids=["image first", "text first", "by row"])
def test_keys_and_values_merge_in_place(is_shared: bool, offset: int | torch.Tensor) -> None:
    active = torch.tensor([[1, 4]] * 2) if is_shared else torch.tensor([[1, 4], [0, 3]])
    rows = RowIndex(active, 5, is_shared).at(offset)
    key, value = torch.randn(2, 3, 5 + 3, 4), torch.randn(2, 3, 5 + 3, 4)
    cache = KVCache(key.clone(), value.transpose(1, 2).contiguous().transpose(1, 2))
    fresh_key, fresh_value = torch.randn(2, 3, 2 + 3, 4), torch.randn(2, 3, 2 + 3, 4)
    storage = cache.key.data_ptr()
    cache.aim(rows)
    merged = cache.merge(fresh_key, fresh_value)
    for got, before, fresh in zip(merged, (key, value), (fresh_key, fresh_value), strict=True):
        expected = before.clone()
        for row in range(2):
            begin = int(offset) if isinstance(offset, int) else int(offset[row])
            kept = [*range(begin), *(active[row] + begin).tolist(), *range(begin + 5, 8)]
            assert rows.positions(8)[row].tolist() == kept
            expected[row, :, kept] = fresh[row]
        assert torch.equal(got, expected)
    assert cache.key.data_ptr() == storage
    sequence = torch.randn(2, 8, 4)
    scattered = rows.scatter(rows.gather(sequence))
    is_kept = membership(rows.positions(8), 8)[..., None]
    assert torch.equal(scattered, sequence * is_kept)


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("offset", [3, torch.tensor([3, 4])], ids=["alike", "by row"])
def test_references_and_text_stay_as_they_were_kept(is_shared: bool, offset: int | torch.Tensor) -> None:
    """A sequence of text (2), perhaps padding (1), a reference (1), the grid (5) and references (2): 11 rows."""
    active = torch.tensor([[1, 4]] * 2) if is_shared else torch.tensor([[1, 4], [0, 3]])
    rows = replace(RowIndex(active, 5, is_shared), beside=(1, 2)).at(offset, hole=(0, 2))
    assert rows.num_dropped == 3 + 3 + 2
    key, value, fresh = torch.randn(2, 3, 11, 4), torch.randn(2, 3, 11, 4), torch.randn(2, 3, 3, 4)
    mask = torch.randn(2, 1, 1, 11)
    cache = KVCache(key.clone(), value.clone(), mask=mask)
    cache.aim(rows)
    merged, _ = cache.merge(fresh, fresh)
    for row in range(2):
        begin = 3 if isinstance(offset, int) else int(offset[row])
        places = [*range(2, begin - 1), *(active[row] + begin).tolist(), *range(begin + 7, 11)]
        assert rows.positions(11)[row].tolist() == places
        expected = key[row].clone()
        expected[:, places] = fresh[row]
        assert torch.equal(merged[row], expected)
    assert cache.mask_for(None) is mask, "a model without text makes no mask: that of the dense step holds"
    whole = replace(RowIndex(active, 5, is_shared), beside=(1, 2)).at(offset)
    cache.aim(whole)
    assert cache.mask_for(None) is None


@pytest.mark.parametrize(
    ("shape", "wanted", "size"),
    [
        ((1, 0, 2, 16), (1, 0, 2, -1, 2), [1, 0, 2, 8, 2]),
        ((0, 6), (0, 3, 2), [0, 3, 2]),
        ((2, 0, 4), (2, 0, -1), [2, 0, 4]),
    ],
)
def test_the_size_of_no_rows(shape: tuple[int, ...], wanted: tuple[int, ...], size: list[int]) -> None:
    assert size_of_none(shape, wanted) == size
    rows = [5 if number == 0 else number for number in shape]
    assert list(torch.zeros(rows).reshape([5 if n == 0 else n for n in wanted]).shape) == [
        5 if n == 0 else n for n in size
    ]


def test_masks_follow_the_computed_queries() -> None:
    active = torch.tensor([[1, 4], [0, 3]])
    by_query = torch.randn(2, 1, 8, 8)
    cache = KVCache(torch.zeros(2, 3, 8, 4), torch.zeros(2, 3, 8, 4), mask=by_query)
    rows = RowIndex(active, 5, False).at(2)
    cache.aim(rows)
    mask = cache.mask_for(by_query)
    assert mask is not None
    for row in range(2):
        assert torch.equal(mask[row, 0], by_query[row, 0, rows.positions(8)[row]])
    alike = torch.randn(2, 1, 1, 8).expand(-1, 3, 8, -1)
    short = cache.mask_for(torch.zeros(2, 1, 1, 5))
    assert short is not None
    assert torch.equal(short, mask), "a mask over computed keys alone gives way to the kept one"
    broad = cache.mask_for(alike)
    assert broad is not None
    assert torch.equal(broad, alike[..., :1, :]), "one query stands for all"
    assert cache.mask_for(None) is None


def test_trace_round_trip_and_counts() -> None:
    steps = [
        StepTrace("dense", 1.0, None, 0.5),
        StepTrace("region", 0.8, torch.tensor([[0, 3], [1, 2]])),
        StepTrace("skip", 0.5, torch.zeros(2, 0, dtype=torch.long)),
    ]
    trace = Trace(TokenGrid(2, 3, 2), steps, ["a note"])
    assert trace.num_tokens == 6
    assert trace.token_steps == pytest.approx(1 + 2 / 6)
    assert trace.times_computed().tolist() == [[[2, 1, 1], [2, 1, 1]], [[1, 2, 2], [1, 1, 1]]]
    again = Trace.from_json(trace.to_json())
    assert again.to_dict() == trace.to_dict()
    assert again.grid == trace.grid
    assert torch.equal(again.times_computed(), trace.times_computed())
    with pytest.raises(ValueError, match="no generation yet"):
        Trace().times_computed()


@pytest.mark.parametrize("size", [(4, 258), (3, 260), (2, 515), (300, 5), (7, 1), (1, 9), (1, 1), (520, 600)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_grid_is_read_off_ids_that_are_rounded(size: tuple[int, int], dtype: torch.dtype) -> None:
    """FLUX.1 hands its ids over in the text's type: in bfloat16 the last of 260 columns is 260 and not 259."""
    rows, columns = size
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1], ids[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)
    reference = torch.tensor([1.0, 0.0, 0.0]).expand(5, 3)
    grid = grid_of_ids(torch.cat([ids.reshape(-1, 3), reference]).to(dtype), 2)
    assert (grid.height, grid.width) == size
