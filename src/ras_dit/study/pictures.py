"""Pictures and videos with nothing but their pixels, so that a file cannot tell how it was made."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ras_dit.files import animation

if TYPE_CHECKING:
    from PIL import Image

EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
ANIMATED = ("PNG", "WEBP")  # a GIF has too few colours to judge, other files of several frames are no videos


@dataclass(frozen=True)
class CleanPicture:
    """A PNG that holds pixels only, and of a video how long each frame is shown.

    Attributes:
        png: the file, without text, time or colour profile; the same pixels and durations always give the same bytes.
        width: in pixels.
        height: in pixels.
        durations: of the frames of a video, in milliseconds; empty for a still picture.
    """

    png: bytes
    width: int
    height: int
    durations: tuple[float, ...] = ()

    @property
    def num_frames(self) -> int:
        """Of a video; 1 for a still picture."""
        return max(1, len(self.durations))

    @property
    def noun(self) -> str:
        """What to call it: picture or video."""
        return "video" if self.durations else "picture"


def clean_picture(path: Path, max_side: int | None = None) -> CleanPicture:
    """Read a picture or video and write its pixels anew, as an sRGB PNG of 8 bits; a video's is animated, for ever.

    Args:
        path: a PNG, JPEG or WebP file; an animated PNG or WebP is a video.
        max_side: a larger picture (every frame of a video) is scaled down to this many pixels (Lanczos); None keeps
            every pixel.

    Raises:
        ValueError: no picture, one of more than 8 bits, or several frames in another kind of file.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            if opened.mode not in EIGHT_BIT:
                raise ValueError(f"study: {path} has pixels of mode {opened.mode!r}; allowed: 8 bits, such as RGB.")
            count = getattr(opened, "n_frames", 1)
            if count > 1 and opened.format not in ANIMATED:
                raise ValueError(
                    f"study: {path} is a {opened.format} file with {count} frames; allowed: still pictures, and videos "
                    "as animated PNG or WebP."
                )
            first = 1 if opened.info.get("default_image") else 0  # a PNG's picture for those who cannot animate
            frames, durations = [], []
            for index in range(first, count):
                opened.seek(index)
                opened.load()  # WebP: no duration before
                durations.append(float(opened.info.get("duration", 0)))
                frames.append(_pixels(_srgb(opened, path), max_side))
    except (UnidentifiedImageError, SyntaxError, EOFError) as error:  # Pillow's for a broken PNG
        raise ValueError(f"study: {path} is no picture that can be read.") from error
    except OSError as error:
        raise ValueError(f"study: {path} cannot be read ({error}).") from error
    animated = animation(frames, durations) if len(frames) > 1 else {}
    buffer = io.BytesIO()
    frames[0].save(buffer, format="PNG", **animated)
    return CleanPicture(buffer.getvalue(), *frames[0].size, tuple(durations) if animated else ())


def _pixels(image: Image.Image, max_side: int | None) -> Image.Image:
    """A picture of the size it is shown at, to which nothing but pixels went over."""
    from PIL import Image

    if max_side is not None:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return Image.frombytes("RGB", image.size, image.tobytes())


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
