"""Videos in a study: frames and durations stay, everything else goes; both of a pair take as long."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageSequence
from PIL.PngImagePlugin import PngInfo

from ras_dit.files import save_png
from ras_dit.study import Pair, StudyConfig, build_study, find_pairs, tally
from ras_dit.study.pictures import clean_picture
from ras_dit.study.votes import parse_ballot
from study.conftest import ballot, colour, film, page_data, paint
from study.test_build import chunks

DURATIONS = [40, 50, 60, 70]
CHUNKS = {"IHDR", "acTL", "fcTL", "IDAT", "fdAT", "IEND"}


def noise(count: int = 4) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 20, 30, 3), dtype=np.uint8)
    return [Image.fromarray(frame) for frame in pixels]


def save(frames: list[Image.Image], path: Path, **options: object) -> Path:
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


def decoded(png: bytes) -> tuple[np.ndarray, list[float]]:
    """Frames and their durations."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.info.get("loop") == 0, "for ever"
        found = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(image)]
    return np.stack([pixels for pixels, _ in found]), [duration for _, duration in found]


def test_frames_and_durations_stay_and_nothing_else(tmp_path: Path) -> None:
    about = PngInfo()
    about.add_itxt("config", "dense")
    exif = Image.Exif()
    exif[0x010E] = "dense"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    extras = {"pnginfo": about, "exif": exif, "icc_profile": srgb, "loop": 3}
    png = save(noise(), tmp_path / "a.png", duration=DURATIONS, **extras)
    webp = save(noise(), tmp_path / "a.webp", duration=DURATIONS, lossless=True)
    first, second = clean_picture(png), clean_picture(webp)
    assert first == second == clean_picture(png), "the file's kind leaves no trace"
    assert chunks(first.png) == CHUNKS
    assert first.durations == tuple(DURATIONS)
    frames, durations = decoded(first.png)
    assert np.array_equal(frames, np.stack([np.asarray(frame) for frame in noise()]))
    assert durations == DURATIONS
    other = clean_picture(save(noise(), tmp_path / "b.png", duration=[*DURATIONS[1:], 40]))
    assert other.png != first.png


def test_videos_by_generate(tmp_path: Path) -> None:
    """At 16 frames per second no frame lasts whole milliseconds."""
    save_png(noise(), tmp_path / "a.png", {"prompt": "a fox", "seed": 3}, fps=16)
    with Image.open(tmp_path / "a.png") as image:
        written = image.info["duration"]
    cleaned = clean_picture(tmp_path / "a.png")
    assert cleaned.durations == (written,) * 4
    assert decoded(cleaned.png)[1] == [written] * 4
    assert chunks(cleaned.png) == CHUNKS


def test_equal_frames_stay_apart(tmp_path: Path) -> None:
    first, second = noise(2)
    path = save([first, first, second, second], tmp_path / "a.png", duration=DURATIONS, blend=[0, 1, 0, 1])
    cleaned = clean_picture(path)
    assert cleaned.durations == tuple(DURATIONS)
    frames, durations = decoded(cleaned.png)
    assert np.array_equal(frames[0], frames[1])
    assert durations == DURATIONS


def test_clear_frames_are_on_white(tmp_path: Path) -> None:
    frames = []
    for index in range(3):
        frames.append(Image.new("RGBA", (20, 20)))
        frames[index].paste((200, 0, 0, 255), (5 * index, 0, 5 * index + 5, 20))
    painted, _ = decoded(clean_picture(save(frames, tmp_path / "a.png", duration=50, disposal=1)).png)
    for index, frame in enumerate(painted):
        assert [tuple(frame[0, 5 * other]) == (200, 0, 0) for other in range(3)] == [i == index for i in range(3)]
        assert (frame == 255).all(axis=-1).sum() == 300


def test_a_picture_beside_the_frames_is_none_of_them(tmp_path: Path) -> None:
    """An animated PNG may hold a still one for programs that do not animate."""
    still, *frames = noise()
    path = save([still, *frames], tmp_path / "a.png", duration=50, default_image=True)
    assert np.array_equal(decoded(clean_picture(path).png)[0], np.stack([np.asarray(frame) for frame in frames]))
    single = clean_picture(save([still, frames[0]], tmp_path / "b.png", duration=50, default_image=True))
    assert single.durations == ()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(single.png))), np.asarray(frames[0]))


def test_every_frame_is_scaled(tmp_path: Path) -> None:
    path = save(noise(), tmp_path / "a.png", duration=DURATIONS)
    small = clean_picture(path, max_side=15)
    assert (small.width, small.height, small.durations) == (15, 10, tuple(DURATIONS))
    for frame, original in zip(decoded(small.png)[0], noise(), strict=True):
        assert np.array_equal(frame, np.asarray(original.resize((15, 10), Image.Resampling.LANCZOS, reducing_gap=2.0)))


def test_broken_videos_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.webp"):
        whole = save(noise(), tmp_path / name, duration=50).read_bytes()
        for share in (0.3, 0.6, 0.9):
            (tmp_path / f"cut-{name}").write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(ValueError, match=f"study: .*cut-{name} (cannot be read|is no picture)"):
                clean_picture(tmp_path / f"cut-{name}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 3}, r"ours\.png has 4 frame\(s\), .*against\.png 3; allowed: two pictures, or two videos"),
        ({"num_frames": 1}, r"ours\.png has 4 frame\(s\), .*against\.png 1; allowed: two pictures, or two videos"),
        (
            {"duration": [50, 50, 62, 38]},
            r"frame 2 of .*ours\.png lasts 50 ms, of .*against\.png 62 ms; allowed: equal",
        ),
        ({"side": 32}, r"24 x 24 pixels, .* 32 x 32"),
    ],
)
def test_nothing_but_pixels_tells_two_videos_apart(tmp_path: Path, options: dict, message: str) -> None:
    ours, against = tmp_path / "ours.png", tmp_path / "against.png"
    film(ours, 5)
    film(against, 9, **options)
    with pytest.raises(ValueError, match=message):
        build_study([Pair("a", ours, against)], "ras", "dense")
    film(against, 9)
    build_study([Pair("a", ours, against)], "ras", "dense")


@pytest.fixture
def videos(tmp_path: Path) -> list[Pair]:
    for name in ("ras", "dense"):
        for index in range(4):
            film(tmp_path / name / f"{index:05d}.png", colour(name, index))
    scenes = [{"prompt": f"a fox number {index}", "seed": index} for index in range(4)]
    (tmp_path / "arena.json").write_text(json.dumps({"scenes": scenes}))
    return find_pairs(tmp_path, "ras", "dense")


def test_a_page_of_videos(videos: list[Pair]) -> None:
    config = StudyConfig(num_repeats=1, num_catches=1, seed=7)
    study = build_study(videos, "ras", "dense", config)
    assert study == build_study(videos, "ras", "dense", config)
    data = page_data(study.html)
    assert data["question"] == study.key.question == "Which video is better?"
    assert [pair.prompt for pair in study.key.pairs] == [f"a fox number {index}" for index in range(4)]
    assert "{{" not in study.html
    shown = {trial["id"]: trial for trial in data["trials"]}
    for trial in study.key.trials:
        for letter in ("a", "b"):
            png = base64.b64decode(data["pictures"][shown[trial.id][letter]])
            assert chunks(png) == CHUNKS
            frames, durations = decoded(png)
            assert durations == [50] * 4
            assert frames[:, 0, 0, 1].tolist() == [0, 20, 40, 60], "in their order"
            if trial.kind != "catch":
                method = "ras" if letter == trial.ours else "dense"
                assert frames[0, 0, 0, 0] == colour(method, trial.pair)
    asked = build_study(videos, "ras", "dense", StudyConfig("Which one moves better?"))
    assert page_data(asked.html)["question"] == asked.key.question == "Which one moves better?"


def test_votes_on_videos_count_as_those_on_pictures(videos: list[Pair]) -> None:
    key = build_study(videos, "ras", "dense", StudyConfig(num_catches=1)).key
    values = ballot(key, lambda pair, kind: "tie" if kind == "catch" else ("win", "win", "tie", "loss")[pair])
    results = tally(key, [parse_ballot(json.dumps(values), key.study, key.trial_ids, "votes")])
    assert (results.tally.win, results.tally.tie, results.tally.loss) == (2, 1, 1)
    assert (results.caught.count, results.caught.total) == (1, 1)


def test_pictures_and_videos_are_studies_of_their_own(videos: list[Pair], tmp_path: Path) -> None:
    for name in ("ras", "dense"):
        paint(tmp_path / name / "still.png", 9)
    still = Pair("still", tmp_path / "ras" / "still.png", tmp_path / "dense" / "still.png")
    assert build_study([still], "ras", "dense").key.question == "Which picture is better?"
    with pytest.raises(
        ValueError, match=r"the video .*00000\.png and the picture .*still\.png; allowed: pictures alone"
    ):
        build_study([*videos, still], "ras", "dense")


def test_a_page_that_no_browser_reads_is_refused(videos: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(map(len, page_data(build_study(videos, "ras", "dense").html)["pictures"].values()))
    monkeypatch.setattr("ras_dit.study.build.MAX_BYTES", size)
    build_study(videos, "ras", "dense")
    monkeypatch.setattr("ras_dit.study.build.MAX_BYTES", size - 1)
    with pytest.raises(ValueError, match=r"4 pair\(s\) make a page of 0 MB; allowed: .* \(num_pairs\), or .*max_side"):
        build_study(videos, "ras", "dense")
    build_study(videos, "ras", "dense", StudyConfig(num_pairs=3))


def test_videos_of_one_request_are_as_long(tmp_path: Path) -> None:
    """Two lengths of one prompt and seed are two requests, as `ras-dit generate` names them."""
    for name in ("ras", "dense"):
        for count in (2, 3):
            about = {"prompt": "a fox", "seed": 0, "height": 20, "width": 30, "num_frames": count}
            path = tmp_path / name / f"fox-{count}-{name}.png"
            save_png(noise(count), path, about)
    found = find_pairs(tmp_path, "ras", "dense")
    assert [(pair.ours.name, pair.against.name) for pair in found] == [
        ("fox-2-ras.png", "fox-2-dense.png"),
        ("fox-3-ras.png", "fox-3-dense.png"),
    ]
    build_study(found, "ras", "dense")
