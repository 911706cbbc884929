"""Pairs are found, pages are blind, keys stay where they are."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
from dataclasses import fields
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from ras_dit.cli.pictures import Picture
from ras_dit.study import Key, Pair, Study, StudyConfig, build_study, find_pairs
from ras_dit.study.pairs import REQUEST_KEYS
from ras_dit.study.pictures import clean_picture
from study.conftest import NUM_PAIRS, colour, page_data, paint


def chunks(png: bytes) -> set[str]:
    found, position = set(), 8
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        found.add(png[position + 4 : position + 8].decode())
        position += 12 + length
    return found


def value_of(data: dict, picture: str) -> int:
    return int(np.asarray(Image.open(io.BytesIO(base64.b64decode(data["pictures"][picture]))))[0, 0, 0])


def test_page_tells_nothing(study: Study) -> None:
    """Neither names, paths, metadata nor the tool's name; pictures are pixels only."""
    data = page_data(study.html)
    for picture in data["pictures"].values():
        assert chunks(base64.b64decode(picture)) == {"IHDR", "IDAT", "IEND"}
    told = study.html
    for picture in data["pictures"].values():
        told = told.replace(picture, "")
    for word in ("ras", "dense", "ours", "against", "config", "seed", "method", r"\d\.png"):
        assert not re.search(rf"(?<![a-z]){word}(?![a-z])", told.lower().replace('method: "post"', "")), word
    assert not re.search(r"https?://|//cdn|@import", told)
    assert set(data["trials"][0]) == {"id", "a", "b", "prompt", "again"}
    assert list(data["pictures"]) == sorted(data["pictures"]), "not in the order of the folders"


def test_key_tells_everything(study: Study) -> None:
    data = page_data(study.html)
    trials = {trial["id"]: trial for trial in data["trials"]}
    assert data["id"] == study.key.study
    assert trials.keys() == study.key.trial_ids
    assert sorted(trial.kind for trial in study.key.trials) == ["catch"] + ["pair"] * NUM_PAIRS + ["repeat"] * 2
    first = {trial.pair: trial for trial in study.key.trials if trial.kind == "pair"}
    for trial in study.key.trials:
        shown = trials[trial.id]
        assert shown["prompt"] == f"a fox number {trial.pair}"
        assert shown["again"] == (first[trial.pair].id if trial.kind == "repeat" else None)
        values = {letter: value_of(data, shown[letter]) for letter in ("a", "b")}
        if trial.kind == "catch":
            assert values["a"] == values["b"]
        else:
            other = "b" if trial.ours == "a" else "a"
            assert values[trial.ours] == colour("ras", trial.pair)
            assert values[other] == colour("dense", trial.pair)


def test_sides_are_balanced_and_random(pairs: list[Pair]) -> None:
    drawn, orders = set(), set()
    for seed in range(20):
        key = build_study(pairs, "ras", "dense", StudyConfig(seed=seed)).key
        by_pair = sorted((trial.pair, trial.ours) for trial in key.trials)
        drawn.add("".join(ours for _, ours in by_pair))
        orders.add(tuple(trial.pair for trial in key.trials))
    assert all(sides.count("a") == NUM_PAIRS // 2 for sides in drawn)
    assert len(drawn) > 10
    assert len(orders) > 10


def test_seed_repeats_a_study(pairs: list[Pair]) -> None:
    seeded = [build_study(pairs, "ras", "dense", StudyConfig(seed=3)) for _ in range(2)]
    assert seeded[0] == seeded[1]
    unseeded = [build_study(pairs, "ras", "dense") for _ in range(2)]
    assert unseeded[0].key.study != unseeded[1].key.study
    assert unseeded[0].key.seed != unseeded[1].key.seed
    assert str(unseeded[0].key.seed) not in unseeded[0].html


def test_subset_and_prompts(pairs: list[Pair]) -> None:
    study = build_study(pairs, "ras", "dense", StudyConfig(num_pairs=2, seed=1, shows_prompts=False))
    data = page_data(study.html)
    assert len(study.key.pairs) == len(data["trials"]) == 2
    assert len(data["pictures"]) == 4
    assert all(trial["prompt"] is None for trial in data["trials"])
    assert all(pair.prompt for pair in study.key.pairs)


def test_prompt_cannot_leave_its_place(pairs: list[Pair]) -> None:
    nasty = "</script><script>alert(1)</script>{{script}}<!-- \u2028 &amp;"
    study = build_study([Pair("a", pairs[0].ours, pairs[0].against, nasty)], "ras", "dense")
    assert "alert(1)</script>" not in study.html
    assert page_data(study.html)["trials"][0]["prompt"] == nasty


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question": " "}, "question"),
        ({"num_pairs": 0}, "num_pairs: got 0"),
        ({"num_pairs": 7}, "allowed: 1 to 6"),
        ({"num_repeats": 7}, "allowed: 0 to 6"),
        ({"num_catches": -1}, "num_catches"),
        ({"max_side": 8}, "at least 16"),
    ],
)
def test_config_is_checked(pairs: list[Pair], values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_study(pairs, "ras", "dense", StudyConfig(**values))


def test_another_key_is_not_overwritten(pairs: list[Pair], tmp_path: Path) -> None:
    first, second = (build_study(pairs, "ras", "dense", StudyConfig(seed=seed)) for seed in (1, 2))
    first.save(tmp_path / "study")
    first.save(tmp_path / "study")
    with pytest.raises(ValueError, match="holds another study"):
        second.save(tmp_path / "study")
    assert Key.load(tmp_path / "study" / "key.json") == first.key
    second.save(tmp_path / "study", overwrite=True)
    assert Key.load(tmp_path / "study" / "key.json") == second.key
    aside = f"key-{first.key.study}.json"
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == [aside, "key.json", "study.html"]
    assert Key.load(tmp_path / "study" / aside) == first.key, "votes may come by mail"


def test_votes_and_key_of_another_study_are_moved_aside_together(pairs: list[Pair], tmp_path: Path) -> None:
    first, second = (build_study(pairs, "ras", "dense", StudyConfig(seed=seed)) for seed in (1, 2))
    ending = f"-{first.key.study}"
    for study, voter, expected in (
        (first, "1", []),
        (second, "2", [f"votes{ending}", f"key{ending}.json"]),
        (first, "3", [f"votes-{second.key.study}", f"key-{second.key.study}.json"]),
        (second, "4", [f"votes{ending}-2", f"key{ending}-2.json"]),
    ):
        assert study.save(tmp_path, overwrite=True) == [tmp_path / name for name in expected]
        assert study.save(tmp_path, overwrite=True) == [], "the same study keeps its votes"
        assert not (tmp_path / "votes").exists()
        (tmp_path / "votes").mkdir()
        (tmp_path / "votes" / f"{voter}.json").write_text(voter)
    for place, voter in ((f"votes{ending}", "1"), (f"votes{ending}-2", "3"), ("votes", "4")):
        assert [path.name for path in (tmp_path / place).iterdir()] == [f"{voter}.json"]
    assert Key.load(tmp_path / f"key{ending}-2.json") == first.key
    (tmp_path / "key.json").write_text("no key")
    first.save(tmp_path, overwrite=True)
    assert (tmp_path / "key-unreadable.json").read_text() == "no key"


def test_pictures_keep_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x010E] = "dense"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image.save(tmp_path / "a.png", exif=exif, icc_profile=srgb)
    image.save(tmp_path / "b.webp", lossless=True)
    first, second = (clean_picture(tmp_path / name) for name in ("a.png", "b.webp"))
    assert first == second, "the file's kind leaves no trace"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(first.png))), pixels)
    small = clean_picture(tmp_path / "a.png", max_side=16)
    assert (small.width, small.height) == (16, 11)
    image.convert("RGBA").save(tmp_path / "c.png")
    assert clean_picture(tmp_path / "c.png").png == first.png
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    clear.save(tmp_path / "d.png")
    assert np.asarray(Image.open(io.BytesIO(clean_picture(tmp_path / "d.png").png))).min() == 255
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "e.png", exif=turned)
    assert (clean_picture(tmp_path / "e.png").width, clean_picture(tmp_path / "e.png").height) == (20, 30)


def test_pictures_are_checked(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="no picture that can be read"):
        clean_picture(tmp_path / "text.png")
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="8 bits"):
        clean_picture(tmp_path / "deep.png")
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (0, 99)]
    for name, kind in (("film.gif", "GIF"), ("two.jpg", "MPO")):
        frames[0].save(tmp_path / name, format=kind, save_all=True, append_images=frames[1:])
        with pytest.raises(ValueError, match=f"a {kind} file with 2 frames; allowed: still pictures, and videos as"):
            clean_picture(tmp_path / name)
    paint(tmp_path / "whole.png", 9)
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"half\.png"):
        clean_picture(tmp_path / "half.png")


def test_pairs_by_request(tmp_path: Path) -> None:
    """Pictures by `ras-dit generate` have names that differ with their settings."""
    for name in ("ras", "dense"):
        for seed in (0, 1):
            metadata = {"prompt": "a fox", "seed": seed, "height": 24, "width": 24}
            paint(tmp_path / name / f"fox-{seed}-{name}.png", seed, metadata)
    paint(tmp_path / "ras" / "fox-0-ras.heatmap.png", 0)
    found = find_pairs(tmp_path, "ras", "dense")
    assert [(pair.ours.name, pair.against.name, pair.prompt) for pair in found] == [
        ("fox-0-ras.png", "fox-0-dense.png", "a fox"),
        ("fox-1-ras.png", "fox-1-dense.png", "a fox"),
    ]
    paint(tmp_path / "ras" / "again.png", 0, {"prompt": "a fox", "seed": 1, "height": 24, "width": 24})
    with pytest.raises(ValueError, match="two pictures of 'a fox' with seed 1"):
        find_pairs(tmp_path, "ras", "dense")
    paint(tmp_path / "ras" / "again.png", 0, {"prompt": "a fox", "seed": 2, "height": 24, "width": 24})
    with pytest.raises(ValueError, match="seed 2 has no partner"):
        find_pairs(tmp_path, "ras", "dense")


def test_requests_are_told_by_what_generate_writes() -> None:
    assert set(REQUEST_KEYS) <= {field.name for field in fields(Picture)}


def test_equal_names_of_other_requests_are_no_pair(tmp_path: Path) -> None:
    for name, seed in (("ras", 0), ("dense", 7)):
        paint(tmp_path / name / "fox.png", seed, {"prompt": "a fox", "seed": seed, "height": 24, "width": 24})
    with pytest.raises(ValueError, match="have one name, but different prompts, seeds, sizes or pictures"):
        find_pairs(tmp_path, "ras", "dense")
    paint(tmp_path / "dense" / "fox.png", 7, {"prompt": "a fox", "seed": 0, "height": 24, "width": 24})
    assert len(find_pairs(tmp_path, "ras", "dense")) == 1


def test_one_prompt_with_two_control_pictures_is_two_requests(tmp_path: Path) -> None:
    common = {"prompt": "a fox", "seed": 0, "height": 24, "width": 24}
    for name in ("ras", "dense"):
        for index, pose in enumerate(("sits", "runs")):
            control = {"file": f"{pose}.png", "sha256": pose}
            paint(tmp_path / name / f"{pose}-{name}.png", index, {**common, "control_image": control})
    found = find_pairs(tmp_path, "ras", "dense")
    assert [(pair.ours.name, pair.against.name) for pair in found] == [
        ("runs-ras.png", "runs-dense.png"),
        ("sits-ras.png", "sits-dense.png"),
    ]
    for name, key in (("ras", "image"), ("dense", "mask_image")):
        paint(tmp_path / "new" / name / "fox.png", 0, {**common, key: {"file": "a.png", "sha256": name}})
    with pytest.raises(ValueError, match="have one name, but different prompts, seeds, sizes or pictures to go by"):
        find_pairs(tmp_path / "new", "ras", "dense")


def test_pairs_of_an_arena(tmp_path: Path) -> None:
    scenes = [{"prompt": "a fox", "seed": 5}, {"prompt": "an owl", "seed": 6}]
    (tmp_path / "arena.json").write_text(json.dumps({"scenes": scenes, "call": {}, "batch": 8}))
    for name in ("preset-balanced", "dense"):
        for index in range(2):
            paint(tmp_path / name / f"{index:05d}.png", index)
    by_slug, by_name = (find_pairs(tmp_path, ours, "dense") for ours in ("preset-balanced", "preset balanced"))
    assert by_slug == by_name
    assert [pair.prompt for pair in by_slug] == ["a fox", "an owl"]


def test_pairs_are_checked(folder: Path, tmp_path: Path) -> None:
    given = find_pairs(folder, str(folder / "ras"), "dense", ["x"] * NUM_PAIRS)
    assert [pair.prompt for pair in given] == ["x"] * NUM_PAIRS
    (tmp_path / "empty").mkdir()
    for words, message in (
        ((folder, "fast", "dense"), "allowed: the folders there: dense, ras"),
        ((tmp_path / "nowhere", "ras", "dense"), "no folder"),
        ((folder, "ras", "ras"), "twice"),
        ((folder, "ras", str(tmp_path / "empty")), "holds no pictures"),
        ((folder, "ras", "dense", ["a"]), "got 1 prompts for 6 pairs"),
    ):
        with pytest.raises(ValueError, match=message):
            find_pairs(*words)
    paint(folder / "ras" / "extra.png", 0)
    with pytest.raises(ValueError, match=r"extra\.png has no partner"):
        find_pairs(folder, "ras", "dense")
    paint(folder / "dense" / "extra.png", 0, side=32)
    with pytest.raises(ValueError, match=r"24 x 24 pixels, .* 32 x 32"):
        build_study(find_pairs(folder, "ras", "dense"), "ras", "dense")
    paint(folder / "dense" / "0.png", 0, {"prompt": "an owl", "seed": 0})
    with pytest.raises(ValueError, match="different prompts"):
        find_pairs(folder, "ras", "dense")


def test_assets_are_in_the_package() -> None:
    assets = resources.files("ras_dit.study").joinpath("assets")
    assert sorted(path.name for path in assets.iterdir()) == ["page.css", "page.html", "page.js"]
