from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy machines
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Nearly every model here is too small to gain, and every run short: only the tests of that want to hear of it."""
    config.addinivalue_line("filterwarnings", "ignore::ras_dit.AdviceWarning")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors run faster, and bit for bit alike, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
