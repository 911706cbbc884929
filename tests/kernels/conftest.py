"""Kernel tests run natively where there is a GPU, and under Triton's interpreter where TRITON_INTERPRET=1 is set before
anything imports Triton: `tests/test_kernels.py` starts a process for each file that does so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from kernels.tensors import IS_INTERPRETED

can_run = importlib.util.find_spec("triton") is not None and (IS_INTERPRETED or torch.cuda.is_available())
collect_ignore_glob = [] if can_run else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that run natively are tests of the GPU."""
    for item in items:
        if not IS_INTERPRETED and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)
