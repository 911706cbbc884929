"""A region of interest: a mask that says which part of a picture may change."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from ras_dit.geometry import TokenGrid


@dataclass(frozen=True)
class RegionOfInterest:
    """A mask at any size, True inside. Compares by content and goes into JSON, as a config has to.

    Attributes:
        height: rows of the mask.
        width: columns of the mask.
        bits: its values, row-major, eight to a byte, compressed, as base64.
    """

    height: int
    width: int
    bits: str

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ValueError(f"region_of_interest: {name}: got {size!r}; allowed: an int of at least 1.")
        if not isinstance(self.bits, str):
            raise ValueError(f"region_of_interest: bits: got {type(self.bits).__name__}; allowed: text in base64.")
        expected = -(-self.height * self.width // 8)
        try:
            length = len(zlib.decompress(base64.b64decode(self.bits)))
        except (ValueError, zlib.error) as error:
            raise ValueError(f"region_of_interest: its bits could not be read ({error}); make it anew.") from error
        if length != expected:
            raise ValueError(
                f"region_of_interest: got {length} bytes for {self.height}x{self.width} pixels; expected {expected}."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RegionOfInterest:
        """From what JSON and YAML hold of one: its three attributes.

        Raises:
            ValueError: others, or values that make no mask.
        """
        if set(values) != {"height", "width", "bits"}:
            raise ValueError(
                f"region_of_interest: got {', '.join(map(str, values)) or 'nothing'}; allowed: height, width and bits, "
                "as `RASConfig.save` writes them, the path of a mask picture, or 'inpaint'."
            )
        return cls(**values)

    @classmethod
    def of(cls, mask: Any) -> RegionOfInterest:
        """From a mask: a PIL image, an array or tensor [H, W] (dimensions of size 1 around it are dropped), or the path
        of a picture. Values above half of the full scale (255 for integers, 1 for the rest) are inside.

        Raises:
            ValueError: another shape, or nothing inside.
        """
        import numpy as np

        if isinstance(mask, (str, Path)):
            mask = _open(Path(mask))
        if hasattr(mask, "convert"):  # a PIL image, an RGBA one by its brightness
            mask = mask.convert("L")
        if hasattr(mask, "detach"):
            mask = mask.detach().float().cpu().numpy() if not _is_integer(mask) else mask.detach().cpu().numpy()
        values = np.asarray(mask)
        shape = values.shape
        values = np.squeeze(values)
        if values.ndim != 2 or values.dtype.kind not in "biuf":
            raise ValueError(
                f"region_of_interest: got {type(mask).__name__} of shape {tuple(shape)}; allowed: one mask [H, W] for "
                "all images, as a PIL image, an array, a tensor or the path of a picture."
            )
        is_scaled = values.dtype.kind in "iu" and values.max(initial=0) > 1
        inside = values > (127 if is_scaled else 0.5)
        if not inside.any():
            raise ValueError("region_of_interest: got a mask with nothing inside; white (True) is what may change.")
        packed = np.packbits(inside.reshape(-1)).tobytes()
        return cls(values.shape[0], values.shape[1], base64.b64encode(zlib.compress(packed, 9)).decode())

    def to_tensor(self) -> torch.Tensor:
        """The mask as bool [height, width]."""
        import numpy as np
        import torch

        packed = np.frombuffer(zlib.decompress(base64.b64decode(self.bits)), dtype=np.uint8)
        values = np.unpackbits(packed, count=self.height * self.width).reshape(self.height, self.width)
        return torch.from_numpy(values.copy()).bool()

    def tokens(self, grid: TokenGrid) -> torch.Tensor:
        """Tokens that the region touches, bool [1, N]; every frame of a video alike."""
        return tokens_touched(self.to_tensor()[None], grid)


def as_region(value: Any) -> RegionOfInterest | Literal["inpaint"] | None:
    """What `RASConfig.region_of_interest` may be given, as it is kept."""
    if value is None or isinstance(value, RegionOfInterest):
        return value
    if isinstance(value, str) and value == "inpaint":
        return "inpaint"
    if isinstance(value, Mapping):
        return RegionOfInterest.from_dict(value)
    return RegionOfInterest.of(value)


def tokens_touched(masks: torch.Tensor, grid: TokenGrid) -> torch.Tensor:
    """Tokens that masks touch.

    Args:
        masks: bool [B, H, W] at the size of the picture, of its latents, or any other of the same proportions.
        grid: the token grid.

    Returns:
        bool [B, N].

    Raises:
        ValueError: the proportions are not those of the grid.
    """
    import torch

    height, width = masks.shape[-2:]
    if abs(height * grid.width - width * grid.height) > max(height * 0.5, width * 0.5, grid.height, grid.width):
        raise ValueError(
            f"region_of_interest: got a mask of {height}x{width}, but the picture has {grid.height}x{grid.width} "
            "tokens; allowed: a mask with the proportions of the picture, such as its size in pixels or in latents."
        )
    touched = torch.nn.functional.adaptive_max_pool2d(masks.float()[:, None], (grid.height, grid.width)) > 0
    return touched.expand(-1, grid.num_frames, -1, -1).reshape(masks.shape[0], grid.num_tokens)


def _is_integer(mask: Any) -> bool:
    return not mask.dtype.is_floating_point


def _open(path: Path) -> Any:
    from PIL import Image

    if not path.is_file():
        raise ValueError(f"region_of_interest: got {str(path)!r}, which is no file; give the path of a mask picture.")
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError) as error:  # Pillow's, of broken files
        raise ValueError(
            f"region_of_interest: got {str(path)!r}, which is no picture that can be read ({error}); give the path of "
            "a mask picture."
        ) from error
    return image
