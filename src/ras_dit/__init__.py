"""Region-Adaptive Sampling for Diffusion Transformers: nearly the same picture, sooner, on top of diffusers.

>>> handle = ras_dit.enable(pipe, preset="balanced")
>>> image = pipe(prompt).images[0]
>>> print(handle.summary())
>>> handle.disable()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ras_dit.attention import UnsupportedAttentionError
    from ras_dit.calibration import calibrate
    from ras_dit.config import RASConfig
    from ras_dit.embedded import load_embedded
    from ras_dit.engine import Handle, Summary, accelerate, disable, enable, handle_of, plan_for
    from ras_dit.gain import DeviceRates
    from ras_dit.geometry import TokenGrid
    from ras_dit.importance import ScoreInputs
    from ras_dit.plan import Cost, Plan, StepPlan, Work, build_plan
    from ras_dit.plan_search import find_plan
    from ras_dit.presets import PRESETS
    from ras_dit.quality import psnr, ssim
    from ras_dit.remarks import AdviceWarning, RASWarning, ShortRunWarning, SmallGainWarning
    from ras_dit.trace import StepTrace, Trace

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "AdviceWarning",
    "Cost",
    "DeviceRates",
    "Handle",
    "Plan",
    "RASConfig",
    "RASWarning",
    "ScoreInputs",
    "ShortRunWarning",
    "SmallGainWarning",
    "StepPlan",
    "StepTrace",
    "Summary",
    "TokenGrid",
    "Trace",
    "UnsupportedAttentionError",
    "Work",
    "accelerate",
    "build_plan",
    "calibrate",
    "disable",
    "enable",
    "find_plan",
    "handle_of",
    "load_embedded",
    "plan_for",
    "psnr",
    "ssim",
]

_HOMES = {
    "attention": ("UnsupportedAttentionError",),
    "calibration": ("calibrate",),
    "config": ("RASConfig",),
    "embedded": ("load_embedded",),
    "engine": ("Handle", "Summary", "accelerate", "disable", "enable", "handle_of", "plan_for"),
    "gain": ("DeviceRates",),
    "geometry": ("TokenGrid",),
    "importance": ("ScoreInputs",),
    "plan": ("Cost", "Plan", "StepPlan", "Work", "build_plan"),
    "plan_search": ("find_plan",),
    "presets": ("PRESETS",),
    "quality": ("psnr", "ssim"),
    "remarks": ("AdviceWarning", "RASWarning", "ShortRunWarning", "SmallGainWarning"),
    "trace": ("StepTrace", "Trace"),
}


def __getattr__(name: str) -> Any:
    """Public names are imported on first use (PEP 562), so that `ras-dit --help` need not wait for torch."""
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"ras_dit.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'ras_dit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
