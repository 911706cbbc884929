"""History, forecast and full noise in one pass."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.tensors import DEVICE, NAN, ROUNDING, assert_close, dtypes, laid, layouts, normal, seeds
from ras_dit.forecast import TokenHistory
from ras_dit.kernels import REFERENCE, triton_operations

RECORD_AND_FILL = triton_operations().record_and_fill
NOW, AT = 0.25, 0.2


def history_of(seed: int, depth: int, num_rows: int, num_tokens: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and falling sigmas; some tokens were computed once or twice only, some at `NOW` already."""
    generator = torch.Generator().manual_seed(seed)
    values = normal(seed, depth, num_rows, num_tokens, width)
    sigmas = (
        NOW
        + 0.1 * (1 + torch.arange(depth)[:, None, None])
        + 0.05 * torch.rand(depth, num_rows, num_tokens, generator=generator)
    )
    sigmas[0, :, 1::4] = NOW
    sigmas[1:, :, 2::4] = NAN
    sigmas[2:, :, 3::4] = NAN
    return torch.where(sigmas.isnan()[..., None], torch.zeros_like(values), values), sigmas


@settings(max_examples=100, deadline=None)
@given(
    seeds,
    dtypes,
    layouts,
    layouts,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from([1, 3, 4, 20, 64, 200]),
    st.sampled_from([0.0, 0.7, 1.0]),
    st.sampled_from([None, 0.5, 1.0]),
    st.sampled_from([None, 0.15]),
    st.booleans(),
    st.data(),
)
def test_record_and_fill_is_its_twin(
    seed: int,
    dtype: torch.dtype,
    layout: str,
    token_layout: str,
    depth: int,
    num_rows: int,
    num_tokens: int,
    width: int,
    damping: float,
    reach: float | None,
    mean_at: float | None,
    is_skipped: bool,
    data: st.DataObject,
) -> None:
    values, sigmas = history_of(seed, depth, num_rows, num_tokens, width)
    is_active = torch.rand(num_rows, num_tokens, generator=torch.Generator().manual_seed(seed)) < 0.4
    tokens = normal(seed + 1, num_rows, num_tokens, width, dtype=dtype)
    tokens[~is_active] = NAN  # nobody may read them
    given_tokens = None if is_skipped else laid(tokens, token_layout).tensor
    mask = None if is_skipped else laid(is_active.to(torch.uint8), token_layout).tensor.view(torch.bool)
    options = {
        "sigma": NOW,
        "at": AT,
        "order": data.draw(st.integers(0, depth - 1)),
        "damping": damping,
        "reach": reach,
        "mean_at": mean_at if depth > 1 else None,
        "dtype": dtype,
    }
    kept = [laid(values, layout), laid(sigmas, layout)]
    filled = RECORD_AND_FILL(kept[0].tensor, kept[1].tensor, given_tokens, mask, **options)
    twin = [values.to(DEVICE), sigmas.to(DEVICE)]
    expected = REFERENCE.record_and_fill(*twin, given_tokens, mask, **options)
    assert filled.dtype == dtype
    assert torch.isfinite(filled).all()
    rounding = max(ROUNDING[dtype], ROUNDING[torch.float32])  # histories are float32, whatever comes out
    torch.testing.assert_close(filled, expected, rtol=rounding, atol=rounding)
    assert torch.equal(kept[0].tensor, twin[0])
    assert torch.equal(kept[1].tensor.nan_to_num(-1), twin[1].nan_to_num(-1))
    assert kept[0].is_alone()
    assert kept[1].is_alone()


def test_a_run_of_steps_goes_as_with_a_token_history() -> None:
    """Dense, dense, region, skipped, region: noise and history are those of the torch code."""
    history = TokenHistory(depth=3)
    for step, sigma in enumerate((0.9, 0.8)):
        history.record(normal(step, 2, 6, 5).to(DEVICE), sigma)
    values, sigmas = history.values.clone(), history.sigmas.clone()
    for step, sigma in enumerate((0.7, 0.55, 0.4), start=2):
        is_skipped = step == 3
        is_active = (torch.arange(12).view(2, 6) % step == 0).to(DEVICE)
        tokens = normal(step, 2, 6, 5).to(DEVICE)
        expected = history.forecast(sigma, 2, 0.8, 1.0)
        if not is_skipped:
            expected = torch.where(is_active[..., None], tokens, expected)
            history.record(tokens, sigma, is_active)
        filled = RECORD_AND_FILL(
            values,
            sigmas,
            None if is_skipped else tokens,
            None if is_skipped else is_active,
            sigma=sigma,
            at=sigma,
            order=2,
            damping=0.8,
            reach=1.0,
        )
        assert_close(filled, expected)
        assert torch.equal(values, history.values)
        assert torch.equal(sigmas.nan_to_num(-1), history.sigmas.nan_to_num(-1))
