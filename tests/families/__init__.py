"""Tiny real pipelines of every supported family. tests/test_families.py runs the ``CASES`` of every module."""

from __future__ import annotations

import importlib
import pkgutil

from families.case import FamilyCase


def all_cases() -> list[FamilyCase]:
    """The cases of all modules here, by module name."""
    found: list[FamilyCase] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        found += getattr(importlib.import_module(f"families.{module.name}"), "CASES", [])
    return found
