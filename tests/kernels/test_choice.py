"""Scores of tokens and the best K of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.tensors import DEVICE, NAN, dtypes, laid, layouts, normal, seeds
from ras_dit import selection
from ras_dit.kernels import REFERENCE, triton_choice, triton_operations

OPERATIONS = triton_operations()


@settings(max_examples=60, deadline=None)
@given(seeds, dtypes, layouts, st.integers(1, 3), st.integers(1, 70), st.integers(0, 3), st.data())
def test_top_k_is_that_of_a_stable_sort(
    seed: int, dtype: torch.dtype, layout: str, num_images: int, num_tokens: int, num_levels: int, data: st.DataObject
) -> None:
    """Few levels make many ties; with none the scores are all different."""
    num_active = data.draw(st.integers(0, num_tokens))
    scores = normal(seed, num_images, num_tokens, dtype=dtype)
    if num_levels:
        scores = (scores * num_levels).round()  # minus zero among them
    scores = laid(scores, layout).tensor
    chosen = OPERATIONS.top_k(scores, num_active)
    assert chosen.dtype == torch.long
    assert torch.equal(chosen, selection.top_k(scores, num_active))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_not_a_number_and_what_is_infinite_have_their_order(dtype: torch.dtype) -> None:
    tiny = 1e-30 if dtype == torch.bfloat16 else 1e-40  # the interpreter knows no bfloat16 below the normal ones
    row = [1.0, -torch.inf, NAN, -1.0, torch.inf, 0.0, -0.0, -NAN, torch.inf, -torch.inf, tiny, -tiny]
    scores = torch.tensor([row, row[::-1]], dtype=dtype, device=DEVICE)
    for num_active in range(len(row) + 1):
        assert torch.equal(OPERATIONS.top_k(scores, num_active), selection.top_k(scores, num_active)), num_active


def test_equal_scores_go_to_the_lower_id() -> None:
    chosen = OPERATIONS.top_k(torch.tensor([[1.0, 2.0, 1.0, 1.0, 2.0, 1.0]], device=DEVICE), 4)
    assert chosen.tolist() == [[0, 1, 2, 4]]


def test_more_tokens_than_fit_a_program_are_sorted_by_torch() -> None:
    scores = normal(0, 2, triton_choice.MOST_TOKENS + 1).to(DEVICE)
    assert torch.equal(OPERATIONS.top_k(scores, 5), selection.top_k(scores, 5))
    few = scores[:, : triton_choice.MOST_TOKENS]
    assert torch.equal(OPERATIONS.top_k(few, 777), selection.top_k(few, 777))


@settings(max_examples=40, deadline=None)
@given(
    seeds,
    dtypes,
    layouts,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 20),
    st.sampled_from([1, 4, 7, 64, 300]),
    st.floats(0, 1),
)
def test_predicted_error_is_its_twin(
    seed: int,
    dtype: torch.dtype,
    layout: str,
    depth: int,
    num_images: int,
    num_tokens: int,
    width: int,
    sigma_next: float,
) -> None:
    values = laid(normal(seed, depth, num_images, num_tokens, width, dtype=dtype), layout).tensor
    generator = torch.Generator().manual_seed(seed)
    sigmas = (
        torch.rand(depth, num_images, num_tokens, generator=generator).sort(dim=0).values
        + torch.arange(depth)[:, None, None]
    )
    sigmas[1:, :, ::3] = NAN  # computed once only
    sigmas = laid(sigmas, layout).tensor
    score = OPERATIONS.predicted_error(values, sigmas, sigma_next)
    expected = REFERENCE.predicted_error(values, sigmas, sigma_next)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(score).all()
