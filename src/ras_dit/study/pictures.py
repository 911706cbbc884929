"""Pictures with nothing but their pixels, so that a file cannot tell how it was made."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


@dataclass(frozen=True)
class CleanPicture:
    """A PNG that holds pixels only.

    Attributes:
        png: the file, without text, time or colour profile; the same pixels always give the same bytes.
        width: in pixels.
        height: in pixels.
    """

    png: bytes
    width: int
    height: int


def clean_picture(path: Path, max_side: int | None = None) -> CleanPicture:
    """Read a picture and write its pixels anew, as an sRGB PNG of 8 bits.

    Args:
        path: a PNG, JPEG or WebP file.
        max_side: a larger picture is scaled down to this many pixels (Lanczos); None keeps every pixel.

    Raises:
        ValueError: no picture, an animation, or one of more than 8 bits.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            if getattr(opened, "n_frames", 1) > 1:
                raise ValueError(f"study: {path} has {opened.n_frames} frames; allowed: still pictures.")
            if opened.mode not in EIGHT_BIT:
                raise ValueError(f"study: {path} has pixels of mode {opened.mode!r}; allowed: 8 bits, such as RGB.")
            image = _srgb(opened, path)
    except (UnidentifiedImageError, SyntaxError) as error:  # Pillow's for a broken PNG
        raise ValueError(f"study: {path} is no picture that can be read.") from error
    except OSError as error:
        raise ValueError(f"study: {path} cannot be read ({error}).") from error
    if max_side is not None:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    pixels = Image.frombytes("RGB", image.size, image.tobytes())  # nothing but pixels goes over
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG")
    return CleanPicture(buffer.getvalue(), *pixels.size)


def _srgb(opened: Image.Image, path: Path) -> Image.Image:
    """Upright, without alpha (on white), in sRGB."""
    from PIL import Image, ImageCms, ImageOps

    profile = opened.info.get("icc_profile")
    image = ImageOps.exif_transpose(opened)
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != "RGB" and not (profile and image.mode == "CMYK"):
        image = image.convert("RGB")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            raise ValueError(f"study: {path} has a colour profile that does not fit it; save it as sRGB.") from None
        assert converted is not None
        image = converted
    return image
