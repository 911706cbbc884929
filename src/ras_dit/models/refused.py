"""Transformer classes that region-adaptive sampling cannot be exact on, with the reason."""

from __future__ import annotations

_SANA = (
    "linear attention sums over all tokens and its feed-forward layers are convolutions, so that a subset of tokens "
    "changes every result. Use the dense pipeline."
)

REFUSED: dict[str, str] = {
    "SanaTransformer2DModel": _SANA,
    "SanaVideoTransformer3DModel": _SANA,
    "NucleusMoEImageTransformer2DModel": "its experts choose their tokens among all of them, so that a subset "
    "of tokens changes every result. Use the dense pipeline.",
    "AnyFlowFARTransformer3DModel": "its causal attention runs on flex attention only and keeps keys and values of its "
    "own. Use AnyFlowPipeline, or the dense pipeline.",
    "WanAnimate2Transformer3DModel": "its attention runs on flex attention, over a buffer laid out for whole frames. "
    "Use the dense pipeline.",
    "Kandinsky6SRTransformer3DModel": "its sparse attention chooses blocks by means over all of their tokens. Use the "
    "dense pipeline.",
}
