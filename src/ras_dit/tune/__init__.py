"""Tuning: the best config for a pipeline and a target, found on a few prompts and checked on others.

`target` says what can be asked for, in the measures of `metric`. `space` says which options are searched, `shape` which
plans, and `plans` how those are changed. `search` tries them with what `measure` paints; `trial` is one try. `validate`
checks the winners on other pictures, `tuning` does it all in a folder, `report` and `plot` say what came of it. Needs
Optuna (the extra ``tune``).
"""

from __future__ import annotations

from ras_dit.tune.metric import PSNR, SSIM, Metric, lpips
from ras_dit.tune.report import write_report
from ras_dit.tune.target import Floor, Target
from ras_dit.tune.tuning import Outcome, Tuning

__all__ = ["PSNR", "SSIM", "Floor", "Metric", "Outcome", "Target", "Tuning", "lpips", "write_report"]
