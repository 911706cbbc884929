"""All that RAS puts on one transformer, and its undo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ras_dit.calls import Call
from ras_dit.cpu_layers import CPULayers, LayerTimings
from ras_dit.flops import Layers
from ras_dit.models import TokenPlan, check_uncompiled
from ras_dit.models.plan import stream_of
from ras_dit.pipeline import is_on
from ras_dit.seams import NoCopies, PatchedMethod
from ras_dit.tokens import TokenSeams


class AttachedTransformer:
    """Hooks around and inside a transformer, the splits of its linear layers on a CPU, and its dimensions.

    Args:
        root: the transformer.
        token_plan: of its class.
        current: gives the transformer call under way, None outside of one.
        timings: of layers split in several ways on a CPU; more are added.
    """

    def __init__(
        self,
        root: torch.nn.Module,
        token_plan: TokenPlan,
        current: Callable[[], Call | None],
        timings: LayerTimings,
    ) -> None:
        self.root = root
        self.seams = TokenSeams(root, token_plan, current)
        streams = token_plan.linear_streams(root)
        self.cpu_layers = CPULayers(root, lambda name: stream_of(name, streams), timings)
        self.layers = Layers.of(token_plan, root)
        self._attention = [module for module, _ in token_plan.attention_modules(root).values()]
        self._token_plan = token_plan
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._patches: list[PatchedMethod | NoCopies] = []

    def attach(
        self,
        before: Sequence[Callable[..., Any]],
        after: Callable[..., Any],
        forward: Callable[[Callable[..., Any]], Callable[..., Any]],
    ) -> None:
        """Put everything in.

        Args:
            before: hooks in front of the transformer's call, in their order, with its keyword arguments.
            after: a hook behind it.
            forward: makes the forward that takes the place of the transformer's, from that.
        """
        self._hooks += [self.root.register_forward_pre_hook(hook, with_kwargs=True) for hook in before]
        self._hooks.append(self.root.register_forward_hook(after, with_kwargs=True))
        self.seams.attach()
        self._patches.append(PatchedMethod(self.root, "forward", forward))
        self._patches.append(NoCopies(self.root, "copy: RAS is on this transformer; ras_dit.disable(pipe) first."))

    def ensure(self) -> None:
        """Put back what somebody else took out since the last run.

        Raises:
            ValueError: the transformer was compiled as a whole meanwhile.
        """
        self.ensure_forward()
        self.cpu_layers.ensure()
        self.seams.ensure()
        check_uncompiled(self.root)

    def ensure_forward(self) -> None:
        """Put the forward back: offload hooks that take themselves out in the first call take it along."""
        for patch in self._patches:
            patch.ensure()

    def read_layers(self) -> Layers:
        """The dimensions as they are now (LoRAs add to them)."""
        self.layers = self.layers.updated(self._token_plan, self.root)
        return self.layers

    def image_prompts(self) -> tuple[bool, ...]:
        """Which image prompts (IP-Adapters) are switched on, of every attention module that has any."""
        scales = [getattr(getattr(module, "processor", None), "scale", None) for module in self._attention]
        return tuple(answer for scale in scales if scale is not None for answer in is_on(scale))

    def clear(self) -> None:
        """No call is under way: attention and layers are left alone."""
        self.seams.end(None)
        self.cpu_layers.clear()

    def close(self) -> None:
        """Take everything out."""
        for hook in self._hooks:
            hook.remove()
        self.seams.close()
        self.cpu_layers.close()
        for patch in self._patches:
            patch.release()
        self._hooks, self._patches = [], []
