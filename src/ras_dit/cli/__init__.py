"""The command `ras-dit`."""

from ras_dit.cli.app import main

__all__ = ["main"]
