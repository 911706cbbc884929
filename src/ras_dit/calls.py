"""One transformer call of an evaluation: what it computes, and what its branch remembers from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from ras_dit.cache import KVCache, rows_alone
from ras_dit.clocks import Stopwatch
from ras_dit.forecast import TokenHistory
from ras_dit.kv_forecast import KVAdvance, KVProgress
from ras_dit.kv_storage import Like
from ras_dit.outputs import Beside
from ras_dit.plan import StepKind
from ras_dit.rows import RowIndex


@dataclass
class Branch:
    """What one transformer call per evaluation remembers (all guidance rows of one concatenated call, for instance).

    Attributes:
        num_rows: batch size R of the call.
        source: the transformer that is called (a pipeline may have two), and which of its passes it is.
        history: its noise before guidance, per token [R, N, D].
        layers: keys and values per attention module (of an earlier run until the first ones are kept, if their memory
            is static).
        likes: what they look like, per attention module, where their memory is static.
        condition: what else the noise hung on: which ControlNets and IP-Adapters were switched on.
        last_index: evaluation it last took part in.
        kept: the merged noise at the last selection [R, N, D]; what the reference rules give to slow tokens.
        noise_shape: shape of the call's output.
        noise_dtype: its type.
        kv_progress: how far its keys and values were carried, where they are forecast.
        num_text: text tokens of the last dense call.
        texts: what they were made of, in the last computed call, and how often these tensors had been written to.
        is_steady: one text was given more than once, so that another one is not the same one made anew.
        beside: whatever the transformer returned beside the noise (LTX-2's audio), where steps are skipped.
    """

    num_rows: int
    source: object
    history: TokenHistory
    condition: object = None
    layers: dict[str, list[KVCache]] = field(default_factory=dict)
    likes: dict[str, list[tuple[Like, Like] | None]] = field(default_factory=dict)
    last_index: int = -1
    kept: torch.Tensor | None = None
    noise_shape: tuple[int, ...] = ()
    noise_dtype: torch.dtype = torch.float32
    kv_progress: KVProgress | None = None
    beside: Beside = field(default_factory=Beside)
    num_text: int = 0
    texts: tuple[tuple[torch.Tensor, int], ...] = ()
    is_steady: bool = False

    def take_in(self, texts: Sequence[torch.Tensor]) -> bool:
        """Whether the last computed call was given the same text, by the memory it lies in and how often that was
        written to; these texts are the last ones from now on. (A model whose text is not known has never read it.)"""
        is_known = self._knows(texts)
        self.is_steady = self.is_steady or is_known
        self.texts = tuple((text, _version_of(text)) for text in texts)
        return is_known

    def is_replaced_by(self, texts: Sequence[torch.Tensor]) -> bool:
        """Whether a call is given another text than those before. Pipelines that lay out their text anew for every call
        are never told to have replaced it; where one text lay in one place, another place is looked into."""
        return self.is_steady and not self._knows(texts) and not self._equals(texts)

    def _equals(self, texts: Sequence[torch.Tensor]) -> bool:
        """Whether texts elsewhere say the same. (A GPU is waited for.)"""
        return len(self.texts) == len(texts) and all(
            _version_of(before) == version
            and (text.device, text.dtype, text.shape) == (before.device, before.dtype, before.shape)
            and torch.equal(text, before)
            for text, (before, version) in zip(texts, self.texts, strict=True)
        )

    def _knows(self, texts: Sequence[torch.Tensor]) -> bool:
        return len(self.texts) == len(texts) > 0 and all(
            _version_of(text) == version and _is_alike(text, before)
            for text, (before, version) in zip(texts, self.texts, strict=True)
        )


def _version_of(text: torch.Tensor) -> int:
    """How often a tensor was written to; nobody counts that in inference mode."""
    return 0 if text.is_inference() else text._version


def _is_alike(text: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are views of the same memory."""
    return (text.data_ptr(), text.shape, text.stride()) == (other.data_ptr(), other.shape, other.stride())


@dataclass
class Call:
    """One transformer call under way.

    Attributes:
        kind: what it computes.
        branch: its memory; None in a run that never needs one.
        rows: active tokens of a region step.
        is_active: the same as a mask [R, N].
        captures: keys and values are to be kept.
        stopwatch: times it.
        num_image_rows: tokens of the grid and reference tokens beside it, N + M.
        num_before: those of the reference tokens that stand in front of the grid.
        num_images: images of the batch; 0 until that is known.
        num_parts: images that go through the transformer one after the other (`ras_dit.by_image`); 1 for all at once.
        forecasts: keys and values are forecast.
        advance: how they are carried from the branch's last step to this one.
        whole: all tokens of the grid, where a dense step follows keys and values that were kept.
        num_others: text tokens, registers and padding beside the image tokens, of a region step.
        num_text_kept: text tokens whose last keys and values serve a region step, so that they are not computed.
        joint_rows: the active tokens (of a dense step: ``whole``) in a joint sequence whose grid begins at a place of
            its own in every row.
    """

    kind: StepKind
    branch: Branch | None
    rows: RowIndex | None
    is_active: torch.Tensor | None
    captures: bool
    stopwatch: Stopwatch
    num_image_rows: int
    num_before: int = 0
    num_images: int = 0
    num_parts: int = 1
    forecasts: bool = False
    advance: KVAdvance | None = None
    whole: RowIndex | None = None
    joint_rows: RowIndex | None = None
    num_others: int = 0
    num_text_kept: int = 0

    def take_in(self, texts: Sequence[torch.Tensor]) -> bool:
        """Whether the branch's last computed call was given the same text (see `Branch.take_in`)."""
        return self.kind != "skip" and self.branch is not None and self.branch.take_in(texts)

    @property
    def num_batch_rows(self) -> int:
        """Batch size R of a region step."""
        assert self.rows is not None
        return len(self.rows.active)

    def rows_of(self, image: int) -> slice:
        """The rows of the batch that belong to an image: pipelines put all images side by side, once per guidance
        row."""
        return slice(image, None, self.num_images)

    def of_image(self, image: int) -> Call:
        """A region step of one image. Its keys and values are views of those of the batch."""
        assert self.branch is not None
        assert self.rows is not None
        own = self.rows_of(image)
        layers = {
            name: [
                cached.of_rows(own) if row is None else cached
                for cached, row in zip(caches, rows_alone(caches, self.num_batch_rows), strict=True)
                if row is None or row % self.num_images == image
            ]
            for name, caches in self.branch.layers.items()
        }
        return replace(
            self,
            rows=self.rows.of_image(image, self.num_images),
            branch=replace(self.branch, layers=layers),
            advance=None if self.advance is None else self.advance.of_batch_rows(own),
            num_parts=1,
        )

    def num_rows_of(self, batch_size: int, num_text: int) -> dict[str, int]:
        """Rows that the linear layers of a region step work on, by their stream, all rows of the batch together.

        Args:
            batch_size: R.
            num_text: text tokens of the call.
        """
        assert self.rows is not None
        image, text = self.num_image_rows - self.rows.num_dropped, num_text - self.num_text_kept
        each = {"image": image, "all_image": self.num_image_rows, "text": text, "all_text": num_text}
        each["joint"] = image + text
        return {stream: batch_size * count for stream, count in {**each, "twice": 2 * image}.items()}
