"""What the command line leaves with."""

from __future__ import annotations

EXIT_OURS = 1  # an error that is not the caller's; Python leaves with it after a traceback, too
EXIT_USAGE = 2
EXIT_VERDICT = 3  # it ran as asked, and what came out is not good enough: a target missed, a figure refused
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count
MEANINGS = (
    "Exit codes: 0 all is done; 1 an error of ours, with its traceback; 2 a mistake in the call, or something that is "
    "missing or too large here; 3 a verdict (tune missed its target, bench refused a figure); 130 interrupted."
)
