"""Whether plots can be drawn: known before anything is painted or measured for them."""

from importlib.util import find_spec

NO_PLOT = "No plot: it needs matplotlib (`pip install '.[arena]'` in the checkout)."


def has_matplotlib() -> bool:
    """Whether matplotlib, an extra, is installed."""
    return find_spec("matplotlib") is not None
