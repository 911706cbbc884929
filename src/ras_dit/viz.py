"""Pictures of what happened: heat maps of the compute, side-by-side comparisons, contact sheets. Pillow only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

# Dark to bright; lightness rises evenly, so the order survives a grey print and colour blindness.
COLOUR_STOPS = (
    (0, 0, 4),
    (40, 11, 84),
    (101, 21, 110),
    (159, 42, 99),
    (212, 72, 66),
    (245, 125, 21),
    (250, 193, 39),
    (252, 255, 164),
)
OVERLAY_OPACITY = 0.6
PAPER, INK, FAINT = (255, 255, 255), (24, 24, 27), (100, 100, 108)
GAP = 12


def colourise(values: torch.Tensor) -> Image.Image:
    """Values [h, w] in [0, 1] as an RGB picture of w x h pixels, dark for 0 and bright for 1."""
    stops = np.asarray(COLOUR_STOPS, dtype=np.float64)
    at = np.linspace(0, 1, len(stops))
    flat = np.clip(values.detach().cpu().to(torch.float64).numpy(), 0, 1)
    channels = [np.interp(flat, at, stops[:, channel]) for channel in range(3)]
    return Image.fromarray(np.rint(np.stack(channels, axis=-1)).astype(np.uint8))


def draw_heatmap(
    times_computed: torch.Tensor,
    num_steps: int,
    image: Image.Image | None = None,
    size: int = 512,
    span: tuple[float, float] | None = None,
    legend: str = "",
) -> Image.Image:
    """How often each token was computed, bright where often.

    Colours span the lowest to the highest count of this map (every token shares the dense steps, so a span from 0 would
    hide the differences); the bar under a map without a picture says what they mean.

    Args:
        times_computed: [h, w], counts in 0..num_steps, or their means.
        num_steps: evaluations of the run.
        image: a picture to lay the map over; the result has its size, and no bar.
        size: longer side of the map in pixels when there is no picture, at least 16; from 160 on a colour bar is added
            below it.
        span: the counts that the darkest and the brightest colour stand for; None takes those of this map.
        legend: under the bar; without it, how many steps the counts are of.

    Raises:
        ValueError: counts that are no [h, w] tensor, lie outside 0..num_steps, or a size that is too small.
    """
    if times_computed.ndim != 2 or times_computed.numel() == 0:
        raise ValueError(f"heat map: got counts of shape {tuple(times_computed.shape)}; allowed: [height, width].")
    low, high = float(times_computed.min()), float(times_computed.max())
    if low < 0 or high > num_steps:
        raise ValueError(f"heat map: got counts from {low:g} to {high:g}; allowed: 0 to num_steps={num_steps}.")
    if size < 16:
        raise ValueError(f"size: got {size}; allowed: at least 16 pixels.")
    low, high = span or (low, high)
    cells = colourise((times_computed - low) / (high - low) if high > low else times_computed / max(1, num_steps))
    if image is not None:
        over = cells.resize(image.size, Image.Resampling.NEAREST)
        grey = image.convert("L").convert("RGB")
        return Image.blend(grey, over, OVERLAY_OPACITY)
    scale = size / max(cells.size)
    extent = (max(1, round(cells.width * scale)), max(1, round(cells.height * scale)))
    map_ = cells.resize(extent, Image.Resampling.NEAREST)
    return _stack([map_, colour_bar(low, high, num_steps, map_.width, legend)]) if map_.width >= 160 else map_


def colour_bar(low: float, high: float, num_steps: int, width: int, legend: str = "") -> Image.Image:
    """The legend of a heat map: what its darkest and brightest colours stand for, ``width`` pixels wide."""
    height = max(10, width // 40)
    font = _font(max(11, min(16, width // 24)))
    text_height = round(font.size * 1.5)
    canvas = Image.new("RGB", (width, height + text_height + 4), PAPER)
    ramp = torch.linspace(0, 1, width)[None] if high > low else torch.full((1, width), high / max(1, num_steps))
    canvas.paste(colourise(ramp).resize((width, height), Image.Resampling.NEAREST), (0, 0))
    draw = ImageDraw.Draw(canvas)
    if high > low:
        draw.text((4, height + 3), f"{round(low, 1):g}", fill=INK, font=font)
        draw.text((width - 4, height + 3), f"{round(high, 1):g}", fill=INK, font=font, anchor="ra")
    counts = "computed in ..." if high > low else f"all computed in {round(high, 1):g}"
    legend = legend or f"{counts} of {num_steps} steps"
    draw.text((width / 2, height + 3), legend, fill=FAINT, font=font, anchor="ma")
    return canvas


def comparison(
    dense: Image.Image,
    accelerated: Image.Image,
    heatmap: Image.Image,
    *,
    titles: Sequence[str] = ("dense", "RAS", "where the compute went"),
    notes: Sequence[str] = ("", "", ""),
    caption: Sequence[str] = (),
    panel: int = 384,
) -> Image.Image:
    """Dense, accelerated and heat map side by side, with titles above, notes below and caption lines at the foot.

    Args:
        dense: the picture of the plain pipeline.
        accelerated: the picture of the same seed with RAS.
        heatmap: the map of the latter's compute.
        titles: one per panel.
        notes: one line under each panel, such as its time.
        caption: lines at the foot.
        panel: longer side of a panel in pixels.
    """
    pictures = [_fit(picture, panel) for picture in (dense, accelerated, heatmap)]
    title_font, note_font = _font(18), _font(15)
    columns = [
        _stack([_text_line(title, title_font, picture.width), picture, _text_line(note, note_font, picture.width)])
        for picture, title, note in zip(pictures, titles, notes, strict=True)
    ]
    width = sum(column.width for column in columns) + GAP * 4
    lines = [line for text in caption for line in _wrap(text, note_font, width - 2 * GAP)]
    line_height = round(note_font.size * 1.5)
    top = max(column.height for column in columns) + GAP // 2
    canvas = Image.new("RGB", (width, top + line_height * len(lines) + 2 * GAP), PAPER)
    left = GAP
    for column in columns:
        canvas.paste(column, (left, GAP))
        left += column.width + GAP
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((GAP, GAP + top + number * line_height), line, fill=INK if number == 0 else FAINT, font=note_font)
    return canvas


def contact_sheet(
    images: Sequence[Image.Image],
    columns: int,
    labels: Sequence[str] = (),
    *,
    title: str = "",
    footer: str = "",
    cell: int = 256,
) -> Image.Image:
    """Pictures in rows from left to right, each with its label above it.

    Args:
        images: the pictures.
        columns: pictures per row, at least 1.
        labels: one per picture, or none at all; an empty one takes no room if its whole row is empty.
        title: a line above everything.
        footer: a line below everything.
        cell: longer side of a picture in pixels.

    Raises:
        ValueError: no picture, no column, or labels that do not match.
    """
    if not images or columns < 1:
        raise ValueError(
            f"contact sheet: got {len(images)} pictures in {columns} columns; allowed: at least 1 of each."
        )
    if labels and len(labels) != len(images):
        raise ValueError(f"contact sheet: got {len(labels)} labels for {len(images)} pictures; give one for each.")
    texts = list(labels) or [""] * len(images)
    cells = [_fit(image, cell) for image in images]
    cell_width = max(picture.width for picture in cells)
    font = _font(15)
    rows = []
    for start in range(0, len(cells), columns):
        row, row_texts = cells[start : start + columns], texts[start : start + columns]
        wrapped = [_wrap(text, font, cell_width) for text in row_texts]
        rows.append(_sheet_row(row, wrapped, cell_width, columns, font))
    width = rows[0].width
    head = [_text_block(title, _font(20), width, INK)] if title else []
    foot = [_text_block(footer, font, width, FAINT)] if footer else []
    return _stack([*head, *rows, *foot])


def _sheet_row(
    row: Sequence[Image.Image],
    wrapped: Sequence[Sequence[str]],
    cell_width: int,
    columns: int,
    font: ImageFont.FreeTypeFont,
) -> Image.Image:
    line_height = round(font.size * 1.4)
    label_height = max(len(lines) for lines in wrapped) * line_height
    width = columns * (cell_width + GAP) + GAP
    canvas = Image.new("RGB", (width, label_height + max(picture.height for picture in row) + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for place, (picture, lines) in enumerate(zip(row, wrapped, strict=True)):
        left = GAP + place * (cell_width + GAP)
        for number, line in enumerate(lines):
            draw.text((left, number * line_height), line, fill=INK, font=font)
        canvas.paste(picture, (left, label_height))
    return canvas


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _fit(image: Image.Image, longer_side: int) -> Image.Image:
    """Scaled so that the longer side is as asked; small pictures keep their pixels visible but smooth."""
    scale = longer_side / max(image.size)
    extent = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(extent, Image.Resampling.LANCZOS)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n") if text else ():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _text_line(text: str, font: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    canvas = Image.new("RGB", (width, round(font.size * 1.6)), PAPER)
    ImageDraw.Draw(canvas).text((0, 2), text, fill=INK, font=font)
    return canvas


def _text_block(text: str, font: ImageFont.FreeTypeFont, width: int, colour: tuple[int, int, int]) -> Image.Image:
    lines = _wrap(text, font, width - 2 * GAP)
    line_height = round(font.size * 1.4)
    canvas = Image.new("RGB", (width, line_height * len(lines) + GAP), PAPER)
    for number, line in enumerate(lines):
        ImageDraw.Draw(canvas).text((GAP, GAP // 2 + number * line_height), line, fill=colour, font=font)
    return canvas


def _stack(pictures: Sequence[Image.Image]) -> Image.Image:
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas
