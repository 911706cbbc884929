"""What a transformer returns: the noise, and whatever stands beside it."""

from __future__ import annotations

from typing import Any

import torch

from ras_dit.forecast import ForecastRule, TokenHistory


def noise_of(output: Any) -> Any:
    """The noise in what a transformer returned: a tensor, or a list of one per picture."""
    if isinstance(output, torch.Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output.sample


def with_noise(output: Any, noise: torch.Tensor) -> Any:
    """What a transformer returned, with other noise in it, in the same form."""
    given = list(noise.unbind()) if isinstance(noise_of(output), list) else noise
    if isinstance(output, torch.Tensor):
        return given
    if isinstance(output, tuple):
        return (given, *output[1:])
    output.sample = given
    return output


class Beside:
    """What a transformer returns beside the noise (a sound's noise, for one). In skipped steps it is carried on as the
    noise of tokens is."""

    def __init__(self) -> None:
        self._form: Any = tuple
        self._others: dict[Any, Any] = {}  # by place or name
        self._histories: dict[Any, TokenHistory] = {}

    def take(self, output: Any, sigma: float, depth: int) -> None:
        """Take in what a computed call returned.

        Args:
            output: as the transformer returned it.
            sigma: of the call.
            depth: values that a forecast goes through.
        """
        self._form, self._others = type(output), _others_of(output)
        for name, value in self._others.items():
            if isinstance(value, torch.Tensor) and value.ndim > 1 and value.is_floating_point():
                tokens = value.reshape(value.shape[0], -1, value.shape[-1])
                known = self._histories.get(name)
                if known is None or known.values.shape[1:] != tokens.shape:
                    known = self._histories[name] = TokenHistory(depth)
                known.record(tokens, sigma)

    def output(self, noise: torch.Tensor | None, rule: ForecastRule, is_object: bool) -> Any:
        """What the transformer would return in a skipped step.

        Args:
            noise: full noise.
            rule: how it is forecast.
            is_object: whether the call asks for an object (``return_dict``).
        """
        if issubclass(self._form, torch.Tensor):
            return noise
        others = {
            name: self._histories[name].forecast(*rule).view(value.shape).to(value.dtype)
            if name in self._histories
            else value
            for name, value in self._others.items()
        }
        if not is_object:
            return (noise, *others.values())
        if self._form is tuple:
            from diffusers.models.modeling_outputs import Transformer2DModelOutput

            return Transformer2DModelOutput(sample=noise)
        return self._form(sample=noise, **others)


def _others_of(output: Any) -> dict[Any, Any]:
    if isinstance(output, tuple):
        return dict(enumerate(output[1:], 1))
    return {name: value for name, value in output.items() if name != "sample"} if isinstance(output, dict) else {}
