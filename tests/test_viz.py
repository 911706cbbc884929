"""Heat maps, comparisons and sheets: sizes, colours and order by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ras_dit import StepTrace, TokenGrid, Trace
from ras_dit.viz import COLOUR_STOPS, colourise, comparison, contact_sheet, draw_heatmap

COUNTS = torch.tensor([[4, 4, 10], [4, 7, 10]])


def test_colours_get_brighter_evenly() -> None:
    lightness = np.asarray(colourise(torch.linspace(0, 1, 64)[None]).convert("L")).astype(int)[0]
    assert (np.diff(lightness) >= 0).all()
    assert lightness[0] < 10
    assert lightness[-1] > 240


def test_cells_are_sharp_and_in_order() -> None:
    picture = draw_heatmap(COUNTS, num_steps=12, size=90)
    assert picture.size == (90, 60), "no room for a bar"
    assert picture.getpixel((0, 0)) == picture.getpixel((59, 29)) == COLOUR_STOPS[0]
    assert picture.getpixel((60, 0)) == picture.getpixel((89, 59)) == COLOUR_STOPS[-1]
    assert sum(COLOUR_STOPS[0]) < sum(picture.getpixel((45, 45))) < sum(COLOUR_STOPS[-1])
    assert len(picture.getcolors()) == 3


def test_bar_below_a_large_map() -> None:
    picture = draw_heatmap(COUNTS, num_steps=12, size=300)
    assert picture.width == 300
    assert picture.height > 200
    assert picture.getpixel((0, 203)) == COLOUR_STOPS[0]
    assert picture.getpixel((299, 203)) == COLOUR_STOPS[-1]


def test_over_a_picture() -> None:
    image = Image.new("RGBA", (50, 34), (200, 10, 10, 255))
    picture = draw_heatmap(COUNTS, num_steps=12, image=image)
    assert picture.size == image.size
    assert picture.mode == "RGB"
    assert sum(picture.getpixel((2, 2))) < sum(picture.getpixel((47, 30)))


def test_means_over_frames_are_not_rounded() -> None:
    """A video's map alone is that of its frames' mean counts."""
    means = torch.tensor([[10.2, 10.4], [10.6, 10.8]])
    picture = draw_heatmap(means, num_steps=28, size=40)
    assert picture.getpixel((0, 0)) == COLOUR_STOPS[0]
    assert picture.getpixel((39, 39)) == COLOUR_STOPS[-1]
    assert len(picture.getcolors()) == 4


def test_dense_run_is_one_bright_colour() -> None:
    picture = draw_heatmap(torch.full((3, 3), 7), num_steps=7, size=30)
    assert picture.getcolors() == [(900, COLOUR_STOPS[-1])]


def test_map_of_one_step() -> None:
    """Bright where it computed a token, dark where not, in every step; the share of frames of a video."""
    dense, skip = StepTrace("dense", 1.0), StepTrace("skip", 0.3, torch.zeros(2, 0, dtype=torch.long))
    region = StepTrace("region", 0.6, torch.tensor([[0, 5], [1, 5]]))
    trace = Trace(TokenGrid(2, 3, 2), [dense, region, skip])
    dark, bright = COLOUR_STOPS[0], COLOUR_STOPS[-1]
    assert trace.heatmap(step=0, size=30).getcolors() == [(600, bright)]
    assert trace.heatmap(step=2, size=30).getcolors() == [(600, dark)]
    for index, cell in ((0, 0), (1, 1)):
        drawn = trace.heatmap(step=1, index=index, size=30)
        found = [drawn.getpixel((10 * column + 5, 10 * row + 5)) for row in range(2) for column in range(3)]
        assert found == [bright if token in (cell, 5) else dark for token in range(6)]
    assert trace.heatmap(Image.new("RGB", (50, 34)), step=1).size == (50, 34)
    assert trace.heatmap(step=1, size=300).height > 200, "a bar below it"
    video = Trace(TokenGrid(1, 3, 2, num_frames=2), [StepTrace("region", 0.6, torch.tensor([[0, 1, 3]]))])
    drawn = video.heatmap(step=0, size=30)
    assert drawn.getpixel((0, 0)) == bright
    assert sum(dark) < sum(drawn.getpixel((15, 5))) < sum(bright)
    assert drawn.getpixel((29, 9)) == dark
    for step in (-1, 3):
        with pytest.raises(ValueError, match=f"step: got {step}; allowed: 0 to 2"):
            trace.heatmap(step=step)
    for index in (-1, 2):
        with pytest.raises(ValueError, match=f"index: got {index}; allowed: 0 to 1, the images of this run"):
            trace.heatmap(index=index)
    assert Trace(TokenGrid(2, 3, 2), [dense]).heatmap(index=5, size=30).getcolors() == [(600, bright)]


def test_every_frame_of_a_video_has_the_map_of_the_latent_frame_nearest_to_it() -> None:
    """Five frames of two latent ones, in the colours of the whole."""
    steps = [StepTrace("dense", 1.0), StepTrace("region", 0.6, torch.tensor([[0, 4]]))]
    frames = [Image.new("RGB", (30, 20), (40 * number, 90, 60)) for number in range(5)]
    steps += [StepTrace("region", 0.3, torch.tensor([[0, 7]]))]
    first, second = torch.tensor([[3, 1], [1, 1]]), torch.tensor([[2, 1], [1, 2]])
    expected = [
        draw_heatmap(counts, 3, frame, span=(1, 3))
        for counts, frame in zip([first, first, first, second, second], frames, strict=True)
    ]
    assert Trace(TokenGrid(2, 2, 2, num_frames=2), steps).heatmaps(frames) == expected
    assert expected[2] != draw_heatmap(second, 3, frames[2], span=(1, 3)) != draw_heatmap(second, 3, frames[2])
    picture = Trace(TokenGrid(2, 4, 2), steps)
    assert picture.heatmaps(frames[:1]) == [picture.heatmap(frames[0])]


@pytest.mark.parametrize(
    ("counts", "size", "message"),
    [
        (COUNTS[0], 64, "shape"),
        (COUNTS + 9, 64, "4 to 19|13 to 19"),
        (COUNTS - 5, 64, "-1"),
        (COUNTS, 3, "size: got 3"),
    ],
)
def test_bad_maps(counts: torch.Tensor, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_heatmap(counts, num_steps=12, size=size)


def test_comparison_holds_the_pictures_in_order() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    pictures = [Image.new("RGB", (40, 30), colour) for colour in colours]
    sheet = comparison(*pictures, caption=("a fox", "fast " * 60), panel=100)
    row = [sheet.getpixel((x, 60)) for x in range(sheet.width)]
    assert [row.count(colour) for colour in colours] == [100, 100, 100]
    assert row.index(colours[0]) < row.index(colours[1]) < row.index(colours[2])


def test_contact_sheet() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    images = [Image.new("RGB", (8, 8), colour) for colour in colours]
    sheet = contact_sheet(images, 3, ["a", "b", "c", "", ""], title="five", footer="end", cell=64)
    counts = {colour: count for count, colour in sheet.getcolors(1 << 16)}
    assert [counts[colour] for colour in colours] == [64 * 64] * 5
    with pytest.raises(ValueError, match="2 labels for 5 pictures"):
        contact_sheet(images, 3, ["a", "b"])
    with pytest.raises(ValueError, match="0 columns"):
        contact_sheet(images, 0)
