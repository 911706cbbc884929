"""The registry of supported transformer classes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from ras_dit.models.allegro import ALLEGRO
from ras_dit.models.anyflow import ANYFLOW
from ras_dit.models.auraflow import AURAFLOW
from ras_dit.models.bria_fibo2 import BRIA_FIBO2
from ras_dit.models.chronoedit import CHRONOEDIT
from ras_dit.models.cogvideox import COGVIDEOX, CONSISID
from ras_dit.models.cogview4 import COGVIEW3_PLUS, COGVIEW4
from ras_dit.models.cosmos import COSMOS
from ras_dit.models.cosmos3 import COSMOS3
from ras_dit.models.dit import DIT
from ras_dit.models.easyanimate import EASYANIMATE
from ras_dit.models.flux import BRIA, BRIA_FIBO, CHROMA, FLUX, LONGCAT_IMAGE, OVIS_IMAGE
from ras_dit.models.flux2 import FLUX2
from ras_dit.models.glm_image import GLM_IMAGE
from ras_dit.models.helios import HELIOS
from ras_dit.models.hidream_image import HIDREAM_IMAGE
from ras_dit.models.hunyuan_dit import HUNYUAN_DIT
from ras_dit.models.hunyuan_image import HUNYUAN_IMAGE
from ras_dit.models.hunyuan_video import HUNYUAN_VIDEO
from ras_dit.models.hunyuan_video15 import HUNYUAN_VIDEO15
from ras_dit.models.hunyuan_video_framepack import HUNYUAN_VIDEO_FRAMEPACK
from ras_dit.models.joyimage import JOYIMAGE
from ras_dit.models.joyimage_edit_plus import JOYIMAGE_EDIT_PLUS
from ras_dit.models.kandinsky5 import KANDINSKY5
from ras_dit.models.kandinsky6 import KANDINSKY6
from ras_dit.models.krea2 import KREA2
from ras_dit.models.ltx import LTX
from ras_dit.models.ltx2 import LTX2
from ras_dit.models.lumina2 import LUMINA2
from ras_dit.models.lumina_next import LUMINA_NEXT
from ras_dit.models.minimax_h3 import MINIMAX_H3
from ras_dit.models.mochi import MOCHI
from ras_dit.models.motif_video import MOTIF_VIDEO
from ras_dit.models.omnigen import OMNIGEN
from ras_dit.models.pixart import PIXART
from ras_dit.models.plan import TokenPlan, TokenSelect
from ras_dit.models.prx import PRX
from ras_dit.models.qwen_image import QWEN_IMAGE
from ras_dit.models.refused import REFUSED
from ras_dit.models.sd3 import SD3
from ras_dit.models.skyreels_v2 import SKYREELS_V2
from ras_dit.models.wan import WAN, WAN_VACE
from ras_dit.models.wan_animate import WAN_ANIMATE
from ras_dit.models.z_image import Z_IMAGE

TOKEN_PLANS: dict[str, TokenPlan] = {
    plan.transformer: plan
    for plan in (
        SD3,
        LUMINA_NEXT,
        FLUX,
        FLUX2,
        CHROMA,
        LONGCAT_IMAGE,
        OVIS_IMAGE,
        BRIA,
        BRIA_FIBO,
        BRIA_FIBO2,
        KREA2,
        QWEN_IMAGE,
        Z_IMAGE,
        LUMINA2,
        PIXART,
        AURAFLOW,
        HUNYUAN_DIT,
        HUNYUAN_IMAGE,
        COGVIEW4,
        COGVIEW3_PLUS,
        GLM_IMAGE,
        PRX,
        HIDREAM_IMAGE,
        OMNIGEN,
        JOYIMAGE,
        JOYIMAGE_EDIT_PLUS,
        DIT,
        WAN,
        WAN_VACE,
        WAN_ANIMATE,
        CHRONOEDIT,
        SKYREELS_V2,
        HELIOS,
        ANYFLOW,
        LTX,
        LTX2,
        HUNYUAN_VIDEO,
        HUNYUAN_VIDEO15,
        HUNYUAN_VIDEO_FRAMEPACK,
        COGVIDEOX,
        CONSISID,
        COSMOS,
        COSMOS3,
        KANDINSKY5,
        KANDINSKY6,
        MOCHI,
        ALLEGRO,
        EASYANIMATE,
        MOTIF_VIDEO,
        MINIMAX_H3,
    )
}


def token_plan_of(transformer: Any) -> TokenPlan:
    """The token plan of a transformer, by its class or the nearest base class.

    Raises:
        ValueError: no plan fits; the message names what is supported.
    """
    for cls in type(transformer).__mro__:
        if cls.__name__ in TOKEN_PLANS:
            plan = TOKEN_PLANS[cls.__name__]
            if cls is not type(transformer):
                _check_blocks(transformer, plan)
            return plan
    name = type(transformer).__name__
    for cls in type(transformer).__mro__:
        if cls.__name__ in REFUSED:
            raise ValueError(f"transformer: got {name}; RAS cannot be exact on it: {REFUSED[cls.__name__]}")
    check_uncompiled(transformer)
    close = difflib.get_close_matches(name, TOKEN_PLANS, n=1, cutoff=0.5)
    hint = f" The nearest supported one is {close[0]}." if close else ""
    raise ValueError(
        f"transformer: got {name}; supported: {', '.join(TOKEN_PLANS)}.{hint} How to add one: docs/adding-a-model.md."
    )


def _check_blocks(transformer: Any, plan: TokenPlan) -> None:
    """Refuse a subclass with blocks of its own (those of quantised engines hold many in one): RAS would pass them by.

    Raises:
        ValueError: a list of blocks has no attention modules where the plan looks for them.
    """
    names, found = [name for name, _ in transformer.named_modules()], list(plan.attention_modules(transformer))
    paths = dict.fromkeys(pattern.partition(".*")[0] + "." for pattern in plan.attention)
    lost = [path for path in paths if _any_under(path, names) and not _any_under(path, found)]
    if lost or not found:
        raise ValueError(
            f"transformer: got {type(transformer).__name__}, a {plan.transformer} with other blocks; allowed: "
            f"attention modules at {', '.join(plan.attention)}. How to add a class of its own: docs/adding-a-model.md."
        )


def _any_under(path: str, names: list[str]) -> bool:
    return any(name.startswith(path) for name in names)


def check_uncached(transformer: Any) -> None:
    """Refuse a transformer with one of diffusers' step caches on: they answer calls in the place of its blocks.

    Raises:
        ValueError: it has one.
    """
    if getattr(transformer, "is_cache_enabled", False):
        raise ValueError(
            f"transformer: got {type(transformer).__name__} with a cache of diffusers on it; allowed: one without. "
            "Call pipe.transformer.disable_cache() first, or ras_dit.disable(pipe) to keep it."
        )
    if (found := next(cache_hooks(transformer), None)) is not None:
        raise ValueError(
            f"transformer: got {type(transformer).__name__} with a cache's hook on it, {found[1]!r}; "
            "allowed: one without. Load the pipeline anew, or call ras_dit.disable(pipe) to keep it."
        )


def cache_hooks(transformer: Any) -> Iterator[tuple[Any, str]]:
    """Every registry of diffusers' hooks that has one of a step cache, and that hook's name."""
    for module in transformer.modules():
        own: Any = vars(module).get("_diffusers_hook")  # (asking a module for what it lacks takes longer)
        for name in [] if own is None else own._hook_order:
            if any(word in name for word in _CACHES):
                yield own, name


_CACHES = ("fbc", "mag_cache", "taylorseer", "pyramid", "faster_cache", "sea_cache", "text_kv_cache")


def check_uncompiled(transformer: Any) -> None:
    """Refuse a transformer that is compiled as a whole: what RAS decides between calls cannot be traced.

    Raises:
        ValueError: it is.
    """
    if type(transformer).__name__ == "OptimizedModule" or getattr(transformer, "_compiled_call_impl", None) is not None:
        raise ValueError(
            "transformer: got a module compiled as a whole by torch.compile(...) or .compile(...); allowed: its blocks "
            "compiled in place, `for block in pipe.transformer.transformer_blocks: block.compile(fullgraph=True)`."
        )


__all__ = [
    "REFUSED",
    "TOKEN_PLANS",
    "TokenPlan",
    "TokenSelect",
    "cache_hooks",
    "check_uncached",
    "check_uncompiled",
    "token_plan_of",
]
