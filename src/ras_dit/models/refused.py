"""Transformer classes that region-adaptive sampling cannot be exact on, with the reason."""

from __future__ import annotations

_SANA = (
    "linear attention sums over all tokens and its feed-forward layers are convolutions, so that a subset of tokens "
    "changes every result. Use the dense pipeline."
)

REFUSED: dict[str, str] = {
    "SanaTransformer2DModel": _SANA,
    "SanaVideoTransformer3DModel": _SANA,
}
