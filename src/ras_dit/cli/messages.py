"""What a command says when something fails: one line on standard error."""

from __future__ import annotations

from rich.console import Console

from ras_dit.errors import WeightsTooLargeError, is_out_of_memory


def to_stderr(text: str) -> None:
    """One line on standard error, as it is."""
    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


def one_line(error: Exception) -> str | None:
    """What to tell the caller about their mistake; None for an error that is not theirs."""
    from ras_dit.attention import UnsupportedAttentionError

    if hasattr(error, "format_message"):  # what typer raises for a bad flag; its class moved between versions
        text = str(error.format_message())
    elif isinstance(error, (ValueError, OSError, ImportError, UnsupportedAttentionError, WeightsTooLargeError)):
        text = str(error)
    elif is_out_of_memory(error):
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        text = f"out of memory: {first_line} {_advice(is_cpu=_is_of_cpu(error))}"
    else:
        return None
    return " ".join(text.split()) or type(error).__name__


def _is_of_cpu(error: Exception) -> bool:
    """Whether the memory that ran out is the computer's own, beside which there is none to move anything to."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error).lower()


def _advice(is_cpu: bool) -> str:
    """What to do when memory runs out; options of the config are called so, for not every command has their flags."""
    halves = "the config's kv_cache_dtype 'float8_e4m3fn' halves them"
    moves = "" if is_cpu else ", and its kv_cache_device 'cpu' moves them"
    offloads = (
        "or --dtype bfloat16."
        if is_cpu
        else "--dtype bfloat16, or --offload model, which leaves more room beside the weights, or --offload "
        "sequential, which leaves the most and is slow."
    )
    return (
        f"Presets 'quality', 'balanced' and 'fast' keep no keys and values; where they are kept, {halves}{moves}. Or "
        f"take a smaller picture, fewer at once, {offloads} `ras-dit plan` says how large the cache is."
    )
