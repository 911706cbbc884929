"""Rows of keys and values to their places, with and without normalising and turning the keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.tensors import DEVICE, NAN, assert_close, dtypes, laid, layouts, normal, places, seeds
from ras_dit.kernels import REFERENCE, triton_operations

MERGE = triton_operations().merge_rows


def options_of(form: str, seed: int, num_batch: int, num_rows: int, width: int) -> dict[str, Any]:
    """Arguments of one of the kernel's forms."""
    options: dict[str, Any] = {}
    if "norm" in form:
        options["norm_eps"] = 1e-6
    if "weight" in form:
        options["norm_weight"] = laid(normal(seed + 5, width), "every second").tensor
    if "turned" in form:
        shape = (num_batch, num_rows, width) if "each" in form else (num_rows, width)
        options["cos"] = laid(normal(seed + 6, *shape), "reversed").tensor
        options["sin"] = laid(normal(seed + 7, *shape), "contiguous").tensor
        options["is_interleaved"] = "halves" not in form
    return options


FORMS = [
    "plain",
    "norm",
    "norm weight",
    "turned",
    "turned halves each",
    "norm turned each",
    "norm weight turned halves",
]


@settings(max_examples=60, deadline=None)
@given(
    seeds,
    st.sampled_from(FORMS),
    dtypes,
    layouts,
    layouts,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(0, 9),
    st.integers(1, 9),
    st.booleans(),
)
def test_merge_is_its_twin(
    seed: int,
    form: str,
    dtype: torch.dtype,
    fresh_layout: str,
    kept_layout: str,
    num_batch: int,
    num_heads: int,
    num_rows: int,
    num_others: int,
    half: int,
    is_shared: bool,
) -> None:
    length, width = num_rows + num_others, 2 * half
    positions = laid(places(seed, 1 if is_shared else num_batch, length, num_rows), fresh_layout).tensor
    key, value = (
        laid(normal(seed + at, num_batch, num_heads, num_rows, width, dtype=dtype), fresh_layout).tensor
        for at in (1, 2)
    )
    empty = torch.full((num_batch, num_heads, length, width), NAN, dtype=dtype)
    kept, expected = [laid(empty, kept_layout) for _ in range(2)], [empty.to(DEVICE), empty.clone().to(DEVICE)]
    options = options_of(form, seed, num_batch, num_rows, width)
    MERGE(kept[0].tensor, kept[1].tensor, key, value, positions, **options)
    REFERENCE.merge_rows(*expected, key, value, positions, **options)
    assert int(expected[1].isnan().sum()) == num_batch * num_heads * num_others * width
    assert_close(kept[0].tensor, expected[0])
    assert torch.equal(kept[1].tensor.nan_to_num(), expected[1].nan_to_num()), "values are copied as they are"
    assert kept[0].is_alone()
    assert kept[1].is_alone()


def test_keys_are_copied_bit_for_bit_where_nothing_is_asked_of_them() -> None:
    key = normal(0, 2, 3, 5, 7, dtype=torch.bfloat16).to(DEVICE)
    kept = torch.zeros_like(key)
    MERGE(kept, torch.zeros_like(key), key, key, torch.arange(5, device=DEVICE)[None])
    assert torch.equal(kept, key)


def test_no_rows_write_nothing() -> None:
    """A region step whose text is kept may have none."""
    kept = torch.full((2, 3, 5, 8), NAN, device=DEVICE)
    empty = kept[:, :, :0]
    MERGE(kept, kept, empty, empty, torch.zeros(1, 0, dtype=torch.long, device=DEVICE))
    assert kept.isnan().all()


@pytest.mark.parametrize(("is_interleaved", "unbind_dim"), [(True, -1), (False, -2)])
def test_turning_is_that_of_diffusers(is_interleaved: bool, unbind_dim: int) -> None:
    """Text first, then half of the grid: tables of all rows, of which the kernel is given those of its rows."""
    key, angles = normal(1, 2, 3, 12, 8).to(DEVICE), normal(2, 12, 8).to(DEVICE)
    cos, sin = angles.cos(), angles.sin()
    whole = apply_rotary_emb(key, (cos, sin), use_real_unbind_dim=unbind_dim)
    rows = torch.tensor([0, 1, 2, 4, 7, 8, 11], device=DEVICE)
    kept = torch.full_like(key, NAN)
    fresh = key[:, :, rows]
    MERGE(
        kept,
        torch.full_like(key, NAN),
        fresh,
        fresh,
        rows[None],
        cos=cos[rows],
        sin=sin[rows],
        is_interleaved=is_interleaved,
    )
    assert_close(kept[:, :, rows], whole[:, :, rows])
    others = [row for row in range(12) if row not in rows.tolist()]
    assert kept[:, :, others].isnan().all()


def test_normalising_is_that_of_torch() -> None:
    norm = torch.nn.RMSNorm(10, eps=1e-5, device=DEVICE)
    torch.nn.init.normal_(norm.weight)
    key = normal(3, 1, 2, 4, 10).to(DEVICE)
    kept = torch.empty_like(key)
    with torch.no_grad():
        MERGE(
            kept,
            torch.empty_like(key),
            key,
            key,
            torch.arange(4, device=DEVICE)[None],
            norm_eps=1e-5,
            norm_weight=norm.weight,
        )
        assert_close(kept, norm(key))
