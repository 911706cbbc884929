"""Tiny real pipelines of every supported family. tests/test_families.py runs the ``CASES`` of every module."""

from __future__ import annotations

import functools
import importlib
import pkgutil

import diffusers

from families.case import FamilyCase


def all_cases() -> list[FamilyCase]:
    """The cases of all modules here, by module name."""
    found: list[FamilyCase] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        try:
            found += getattr(importlib.import_module(f"families.{module.name}"), "CASES", [])
        except ImportError:
            if not is_older_diffusers():
                raise  # a class that the lowest supported version does not have yet is no error there
    return found


@functools.cache
def one_case_per_class() -> dict[str, FamilyCase]:
    """The first case of every transformer class, by the class's name."""
    cases: dict[str, FamilyCase] = {}
    for case in all_cases():
        cases.setdefault(type(case.build().transformer).__name__, case)
    return cases


def is_older_diffusers() -> bool:
    """Whether this is an older diffusers than the newest supported one."""
    return tuple(int(part) for part in diffusers.__version__.split(".")[:2]) < (0, 42)
