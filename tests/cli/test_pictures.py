"""What a command hands to a pipeline's call: guidance of two kinds, negative prompts, pictures to begin with."""

from __future__ import annotations

import inspect
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import ras_dit as library
from families import flux, qwen_images
from ras_dit.arena import Scene
from ras_dit.arena.run import call_for
from ras_dit.cli.call_checks import OPTIONAL, check_call
from ras_dit.cli.generate import Batch
from ras_dit.cli.pictures import Picture, call_arguments, read_image
from ras_dit.cli.pipelines import load_pipeline
from ras_dit.region import tokens_touched
from ras_dit.viz import draw_heatmap
from tiny import redraw, tiny_transformer, tiny_vae

Run = Callable[..., tuple[int, str, str]]

SIZE = {"height": 64, "width": 64}
SHORT = ("-m", "a/model", "--steps", 6, "--height", 64, "--width", 64, "--sample-ratio", 0.5, "--warmup-steps", 2)
CONFIG = library.RASConfig.preset("balanced").replace(sample_ratio=0.5, warmup_steps=2)
EDITS = (
    "QwenImageEdit",
    "QwenImageEditPlus",
    "QwenImageLayered",
    "FluxImg2Img",
    "StableDiffusion3Img2Img",
    "LTXImageToVideo",
    "LTX2ImageToVideo",
)


def build(kind: Any = diffusers.FluxPipeline, **changes: Any) -> Any:
    """A tiny FLUX.1 whose text encoders are a hash of the prompt."""
    pipe = flux.build(kind, vae=tiny_vae(4, num_levels=3), **changes)

    def encode_prompt(prompt: str | list[str], **_: Any) -> tuple[torch.Tensor, ...]:
        embeds, pooled = [], []
        for text in [prompt] if isinstance(prompt, str) else prompt:
            generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
            embeds.append(torch.randn(8, 24, generator=generator))
            pooled.append(torch.randn(20, generator=generator))
        return torch.stack(embeds), torch.stack(pooled), torch.zeros(8, 3)

    pipe.encode_prompt = encode_prompt
    return pipe


class Layered:
    """Takes pictures with transparency, as Qwen-Image-Layered."""

    vae = SimpleNamespace(config=SimpleNamespace(input_channels=4))

    def __call__(self, prompt: str, image: Image.Image) -> None: ...


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have every command load this pipeline."""

    def instead(**changes: Any) -> None:
        monkeypatch.setattr("ras_dit.cli.pipelines.load_pipeline", lambda *_, **__: build(**changes))

    return instead


def painted(folder: Path) -> tuple[np.ndarray, dict[str, str]]:
    (path,) = folder.glob("*.png")
    with Image.open(path) as image:
        return np.asarray(image), dict(image.text)  # type: ignore[attr-defined]


def expected(pipe: Any, **call: Any) -> np.ndarray:
    with library.accelerate(pipe, CONFIG):
        generator = torch.Generator().manual_seed(0)
        return np.asarray(pipe("a fox", num_inference_steps=6, generator=generator, **SIZE, **call).images[0])


def test_both_kinds_of_guidance_reach_the_call(ras_dit: Run, loads: Callable[..., None], tmp_path: Path) -> None:
    loads()
    guided = ("--negative-prompt", "a cat", "--true-cfg-scale", 3, "--guidance", 2)
    code, _, err = ras_dit("generate", "a fox", *SHORT, *guided, "-o", tmp_path)
    assert code == 0, err
    picture, about = painted(tmp_path)
    assert np.array_equal(picture, expected(build(), negative_prompt="a cat", true_cfg_scale=3.0, guidance_scale=2.0))
    assert not np.array_equal(picture, expected(build(), guidance_scale=2.0)), "it is guided"
    assert (about["negative_prompt"], about["true_cfg_scale"], about["guidance"]) == ("a cat", "3.0", "2.0")


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({}, ("--negative-prompt", "a cat"), "above 1 only, got 1.0; add --true-cfg-scale 4."),
        ({}, ("--true-cfg-scale", 3), "with a negative prompt only; add --negative-prompt"),
        ({}, ("--true-cfg-scale", "inf"), "true_cfg_scale: got inf; allowed: a finite number."),
        ({"guidance_embeds": False}, ("--guidance", 4), "not guidance-distilled; give --true-cfg-scale"),
    ],
)
@pytest.mark.parametrize("command", [("generate", "a fox"), ("compare", "a fox")])
def test_guidance_that_would_not_be_heeded_is_refused(
    ras_dit: Run, loads: Callable[..., None], tmp_path: Path, command: tuple, changes: dict, flags: tuple, message: str
) -> None:
    loads(**changes)
    where = ("-o", tmp_path / "out.png") if command[0] == "compare" else ("-o", tmp_path)
    code, _, err = ras_dit(*command, *SHORT, *flags, *where)
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())


def test_guidance_that_a_model_does_not_heed_is_not_recorded(
    ras_dit: Run, loads: Callable[..., None], tmp_path: Path
) -> None:
    loads(guidance_embeds=False)
    assert ras_dit("generate", "a fox", *SHORT, "-o", tmp_path)[0] == 0
    before = painted(tmp_path)[0]
    assert "guidance" not in painted(tmp_path)[1]
    code, _, err = ras_dit("generate", "a fox", *SHORT, "--guidance", 0, "-o", tmp_path / "none")
    assert code == 0, err
    assert np.array_equal(painted(tmp_path / "none")[0], before), "it asks for no guidance"
    assert "guidance" not in painted(tmp_path / "none")[1]


def test_a_mistake_in_the_last_line_is_known_before_the_first_is_painted(
    ras_dit: Run, loads: Callable[..., None], tmp_path: Path
) -> None:
    loads()
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a fox"}\n{"prompt": "an owl", "negative_prompt": "a cat"}')
    code, _, err = ras_dit("generate", "--prompts-file", prompts, *SHORT, "-o", tmp_path / "out")
    assert code == 2
    assert "add --true-cfg-scale 4." in err
    assert not list(tmp_path.glob("out/*"))


def test_a_negative_prompt_is_for_every_picture_of_a_batch() -> None:
    scenes = [Scene("a fox", 1), Scene("an owl", 2)]
    call = {**SIZE, "negative_prompt": "a cat", "true_cfg_scale": 3.0}
    both = call_for(build(), scenes, 3, call)[0]
    for scene, image in zip(scenes, both, strict=True):
        (alone,) = call_for(build(), [scene], 3, call)[0]
        assert np.abs(np.asarray(image).astype(int) - np.asarray(alone)).max() <= 1
    assert call["negative_prompt"] == "a cat"


def test_calibrated_with_true_guidance(ras_dit: Run, loads: Callable[..., None], tmp_path: Path) -> None:
    loads()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\nan owl\n")
    words = ("calibrate", "--prompts-file", prompts, *SHORT)
    for name, flags in (("guided", ("--negative-prompt", "a cat", "--true-cfg-scale", 3)), ("plain", ())):
        code, _, err = ras_dit(*words, *flags, "-o", tmp_path / f"{name}.json")
        assert code == 0, err
    guided, plain = (library.RASConfig.load(tmp_path / f"{name}.json") for name in ("guided", "plain"))
    assert len(guided.forecast_fit) == len(plain.forecast_fit) > 0
    assert guided != plain


def test_a_picture_to_begin_with(ras_dit: Run, loads: Callable[..., None], tmp_path: Path) -> None:
    loads(kind=diffusers.FluxImg2ImgPipeline)
    drawn = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    file = tmp_path / "drawn.png"
    Image.fromarray(drawn).save(file)
    code, _, err = ras_dit("generate", "a fox", *SHORT, "--image", file, "-o", tmp_path / "out")
    assert code == 0, err
    picture, about = painted(tmp_path / "out")
    call = {"image": Image.fromarray(drawn), "guidance_scale": 7.0}
    assert np.array_equal(picture, expected(build(diffusers.FluxImg2ImgPipeline), **call))
    assert json.loads(about["image"])["file"] == "drawn.png"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a fox", "image": "drawn.png"}')
    assert (
        "1 of 1 pictures are there already"
        in ras_dit("generate", "--prompts-file", prompts, *SHORT, "-o", tmp_path / "out")[1]
    ), "relative to the folder of the file, and the same picture"
    Image.fromarray(255 - drawn).save(file)
    ras_dit("generate", "a fox", *SHORT, "--image", file, "-o", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 2, "another picture under the same name is another request"


def with_weights(model: str, kind: Any, folder: Path, **parts: Any) -> str:
    """A folder with a pipeline of another class, and transformer and autoencoder of 16 channels."""
    words = diffusers.StableDiffusion3Pipeline.from_pretrained(model, text_encoder_3=None, tokenizer_3=None).components
    known = inspect.signature(kind.__init__).parameters
    transformer = tiny_transformer(0, in_channels=16, out_channels=16)
    parts = {**words, "transformer": transformer, "vae": tiny_vae(), **parts}
    kind(**{name: part for name, part in parts.items() if name in known}).save_pretrained(folder)
    return str(folder)


def test_inpainting_within_its_mask(ras_dit: Run, model: str, tmp_path: Path) -> None:
    folder = with_weights(model, diffusers.StableDiffusion3InpaintPipeline, tmp_path / "model")
    drawn = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    mask = np.zeros((32, 48), dtype=np.uint8)
    mask[16:, 24:] = 255
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    Image.fromarray(mask).convert("RGB").save(tmp_path / "mask.png")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a fox", "image": "drawn.png", "mask_image": "mask.png"}')
    flags = ("--steps", 10, "--height", 32, "--width", 48, "--sample-ratio", 0.2, "--warmup-steps", 2)
    words = ("-m", folder, *flags, "--region-of-interest", "inpaint")
    files = ("--image", tmp_path / "drawn.png", "--mask-image", tmp_path / "mask.png")
    code, _, err = ras_dit("generate", "a fox", *words, *files, "--trace", "-o", tmp_path / "out")
    assert code == 0, err
    (trace,) = (tmp_path / "out").glob("*.trace.json")
    counts = library.Trace.from_json(trace.read_text()).times_computed()[0]
    assert counts.min() < counts.max()
    inside = tokens_touched(torch.from_numpy(mask > 0)[None], library.TokenGrid(8, 12, 2))[0].reshape(counts.shape)
    assert (counts[~inside] == counts.min()).all()
    assert counts[inside].min() > counts.min()
    (path,) = (path for path in (tmp_path / "out").glob("*.png") if ".heatmap" not in path.name)
    with Image.open(path) as image:
        assert json.loads(image.text["mask_image"])["file"] == "mask.png"  # type: ignore[attr-defined]
    code, out, err = ras_dit("generate", "--prompts-file", prompts, *words, "--trace", "-o", tmp_path / "out")
    assert "1 of 1 pictures are there already" in out, err
    code, _, err = ras_dit("compare", "a fox", *words, *files, "--repeats", 1, "-o", tmp_path / "both.png")
    assert code == 0, err
    prompts.write_text('{"prompt": "a fox", "image": "drawn.png", "mask_image": "mask.png", "strength": 0.5}')
    code, out, err = ras_dit("generate", "--prompts-file", prompts, "-m", folder, *flags, "-o", tmp_path / "half")
    assert code == 0, err
    assert "RAS: 5 evaluations" in out
    (path,) = (tmp_path / "half").glob("*.png")
    with Image.open(path) as image:
        assert image.text["strength"] == "0.5"  # type: ignore[attr-defined]
    code, _, err = ras_dit("generate", "a fox", *words, *files[:2], "-o", tmp_path / "out")
    assert code == 2
    assert "needs mask_image, which was not given; give --mask-image to ras-dit generate or compare" in err


def test_a_controlnet_is_shown_its_picture(ras_dit: Run, model: str, tmp_path: Path) -> None:
    controlnet = diffusers.SD3ControlNetModel.from_transformer(
        tiny_transformer(0, in_channels=16, out_channels=16), num_layers=2, num_extra_conditioning_channels=0
    )
    redraw(controlnet, seed=9)
    kind = diffusers.StableDiffusion3ControlNetPipeline
    folder = with_weights(model, kind, tmp_path / "model", controlnet=controlnet)
    words = ("-m", folder, "--steps", 6, "--height", 32, "--width", 48)
    seen = []
    for color in ("red", "blue"):
        Image.new("RGB", (48, 32), color).save(tmp_path / f"{color}.png")
        files = ("--control-image", tmp_path / f"{color}.png")
        code, _, err = ras_dit("generate", "a fox", *words, *files, "-o", tmp_path / color)
        assert code == 0, err
        seen.append(painted(tmp_path / color))
    assert not np.array_equal(seen[0][0], seen[1][0])
    assert json.loads(seen[1][1]["control_image"])["file"] == "blue.png"
    code, _, err = ras_dit("compare", "a fox", *words, *files, "--repeats", 1, "-o", tmp_path / "both.png")
    assert code == 0, err


@pytest.mark.parametrize("lines", [("drawn.png", None), (None, None)])
def test_a_line_without_the_picture_that_others_give_is_named(
    ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: tuple[str | None, ...]
) -> None:
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("was loaded"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "FluxImg2ImgPipeline"}')
    Image.new("RGB", (8, 8)).save(tmp_path / "drawn.png")
    prompts = tmp_path / "prompts.jsonl"
    entries = [{"prompt": "a fox", **({"image": image} if image else {})} for image in lines]
    prompts.write_text("\n".join(map(json.dumps, entries)))
    code, _, err = ras_dit("generate", "--prompts-file", prompts, "-m", tmp_path / "model", "-o", tmp_path / "out")
    assert code == 2
    place = f"--prompts-file: {prompts}, line 2: " if lines[0] else ""
    assert f"ras-dit: error: {place}--model: a FluxImg2ImgPipeline needs image, which was not given; give --im" in err


def test_a_picture_is_decoded_once(
    ras_dit: Run, loads: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads(kind=diffusers.FluxImg2ImgPipeline)
    file, opened, read = tmp_path / "drawn.png", [], Image.open
    Image.new("RGB", (64, 64), "red").save(file)
    monkeypatch.setattr(Image, "open", lambda path, *_: (opened.append(path), read(path))[1])
    code, _, err = ras_dit("generate", "a fox", *SHORT, "-n", 2, "--image", file, "-o", tmp_path / "out")
    assert code == 0, err
    assert opened == [file]


class OfLayers(qwen_images.SmallLayeredPipeline):
    """Hears the same in every prompt, and takes the picture of its case apart."""

    def __call__(self, prompt: str, num_inference_steps: int, generator: object, image: object = None) -> Any:
        changes = {"num_inference_steps": num_inference_steps, "output_type": "pil"}
        return super().__call__(**{**qwen_images.layers(), **changes})


def of_layers(*_: object, **__: object) -> Any:
    pipe = qwen_images.layered()
    pipe.__class__ = OfLayers
    return pipe


def test_layers_are_pictures_of_their_own(ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ras_dit.cli.pipelines.load_pipeline", of_layers)
    words = ("generate", "a fox", "-m", "a/model", "--steps", 6, "--sample-ratio", 0.5, "--warmup-steps", 2)
    code, out, err = ras_dit(*words, "--trace", "-o", tmp_path)
    assert code == 0, err
    layers = sorted(path for path in tmp_path.glob("*-layer?.png") if ".heatmap" not in path.name)
    assert [path.name[-11:] for path in layers] == ["-layer0.png", "-layer1.png"]
    assert all(f"Wrote {path}" in out for path in layers)
    with library.accelerate(of_layers(), CONFIG) as handle:
        expected_layers = handle._pipe()("a fox", 6, None).images[0]
        counts = handle.trace.times_computed()[0]
    assert len(counts) == 3, "the whole picture, then its layers"
    for number, (path, layer) in enumerate(zip(layers, expected_layers, strict=True)):
        with Image.open(path) as image:
            assert getattr(image, "n_frames", 1) == 1
            assert np.array_equal(np.asarray(image), np.asarray(layer))
        span = int(counts.min()), int(counts.max())
        drawn = draw_heatmap(counts[1 + number], 6, layer, span=span)
        with Image.open(path.with_name(path.name.replace("-layer", ".heatmap-layer"))) as image:
            assert np.array_equal(np.asarray(image), np.asarray(drawn))
    again = ras_dit(*words, "--trace", "-o", tmp_path)[1]
    assert f"1 of 1 pictures are there already. First: {layers[0]}" in again
    layers[0].unlink()
    assert f"Wrote {layers[0]}" in ras_dit(*words, "--trace", "-o", tmp_path)[1], "the first is written last"


def test_layers_are_compared_one_by_one(ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ras_dit.cli.pipelines.load_pipeline", of_layers)
    words = ("--steps", 6, "--sample-ratio", 0.5, "--warmup-steps", 2, "--repeats", 1)
    code, out, err = ras_dit("compare", "a fox", "-m", "a/model", *words, "-o", tmp_path / "both.png")
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both-layer0.png", "both-layer1.png"]
    assert "both-layer1.png" in out


def test_pictures_that_cannot_be_read(
    ras_dit: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("no picture")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a fox", "image": 3}')
    out = ("-m", model, "-o", tmp_path / "out")
    for call, message in (
        (("generate", "a", "--image", tmp_path / "none.png"), "none.png', which is no file."),
        (("generate", "a", "--image", words), "words.txt', which cannot be read as a picture"),
        (("generate", "--prompts-file", prompts), "line 1: image: got 3; give a file."),
        (("generate", "a", "--strength", 0.5), "strength: StableDiffusion3Pipeline has no such option; leave it out."),
    ):
        code, _, err = ras_dit(*call, *out)
        assert code == 2
        assert message in err
    Image.new("L", (8, 8)).save(tmp_path / "grey.png")
    code, _, err = ras_dit("generate", "a", "--image", tmp_path / "grey.png", *out)
    assert code == 2
    assert "image: StableDiffusion3Pipeline has no such option; leave it out." in err
    assert read_image(tmp_path / "grey.png").mode == "RGB"
    assert call_arguments(Layered(), Picture("a fox", image=tmp_path / "grey.png"))["image"].mode == "RGBA"
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    Image.new("L", (8, 9)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    code, _, err = ras_dit("generate", "a", "--control-image", tmp_path / "huge.png", *out)
    assert code == 2
    assert "control_image: got" in err
    assert "huge.png', which cannot be read as a picture (Image size" in err


@pytest.mark.parametrize(
    ("name", "gives", "message"),
    [
        (
            "WanImageToVideoPipeline",
            (),
            "needs image, which was not given; give --image to ras-dit generate or compare",
        ),
        ("WanImageToVideoPipeline", ("image",), None),
        ("DiTPipeline", (), "takes no prompt; use the library"),
        ("StableDiffusion3Pipeline", (), None),
        *((f"{kind}Pipeline", (), f"a {kind}Pipeline needs image, which was not given") for kind in EDITS),
        *((f"{kind}Pipeline", ("image",), None) for kind in EDITS),
        *((f"{kind}Pipeline", (), None) for kind in ("FluxKontext", "Flux2", "GlmImage", "LTXCondition", "WanVACE")),
        (
            "FluxFillPipeline",
            (),
            "needs image and mask_image, which was not given; give --image and --mask-image to ras",
        ),
        (
            "FluxFillPipeline",
            ("image",),
            "needs mask_image, which was not given; give --mask-image to ras-dit generate",
        ),
        ("FluxFillPipeline", ("image", "mask_image"), None),
        ("FluxControlPipeline", (), "needs control_image, which was not given; give --control-image"),
        ("FluxControlPipeline", ("control_image",), None),
        ("FluxControlPipeline", ("image", "control_image"), "image: FluxControlPipeline has no such option; leave it"),
        ("FluxControlPipeline", ("mask_image",), "mask_image: FluxControlPipeline has no such option; leave it out."),
        ("StableDiffusion3ControlNetInpaintingPipeline", ("control_image",), "needs control_mask, which was not given"),
        (
            "WanVideoToVideoPipeline",
            (),
            "needs video, which was not given; the command line takes a prompt, --image, --mask-image and "
            "--control-image alone; use the library",
        ),
        ("JoyImageEditPlusPipeline", ("image",), None),
        ("OmniGenPipeline", ("image",), None),
        ("Cosmos2VideoToWorldPipeline", ("image",), None),
    ],
)
def test_pipelines_that_want_more_than_a_prompt(
    tmp_path: Path, name: str, gives: tuple[str, ...], message: str | None
) -> None:
    """Refused before any weights are read (the folder has none)."""
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(Exception) as caught:
        load_pipeline(str(tmp_path), allows_video=True, check=lambda kind: check_call(kind, gives))
    said = str(caught.value)
    assert (message or " expected ") in said  # without a message: diffusers says which parts are not there


def test_arguments_that_default_to_none_and_are_needed() -> None:
    class ConsisIDPipeline:
        def __call__(self, image: Any, prompt: Any = None, id_vit_hidden: Any = None, id_cond: Any = None) -> None: ...

    with pytest.raises(ValueError, match="needs id_cond and id_vit_hidden, which was not given; the command line"):
        check_call(ConsisIDPipeline, ("image",))


def test_pipelines_that_do_without_are_called_so() -> None:
    """Every name is of a pipeline of some supported diffusers: of all of them, with the newest."""
    is_newest = diffusers.__version__.startswith("0.42.")
    for argument, names in OPTIONAL.items():
        for name in names:
            kind = getattr(diffusers, name, None)
            assert kind is not None or not is_newest, name
            if kind is not None:
                assert inspect.signature(kind.__call__).parameters[argument].default is None, name


def test_a_pipeline_whose_libraries_are_missing_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.utils.dummy_pt_objects import AutoencoderKL as Missing

    is_missing = (lambda: False, "{0} requires the PyTorch library")
    monkeypatch.setitem(diffusers.utils.import_utils.BACKENDS_MAPPING, "torch", is_missing)
    monkeypatch.setattr(diffusers, "MissingPipeline", Missing, raising=False)
    (tmp_path / "model_index.json").write_text('{"_class_name": "MissingPipeline"}')
    with pytest.raises(ImportError, match="requires the PyTorch library"):
        load_pipeline(str(tmp_path), allows_video=True)


@pytest.mark.parametrize(("name", "kind"), [("images", "list"), ("input_images", "list"), ("image", "picture")])
def test_pictures_by_other_names(tmp_path: Path, name: str, kind: str) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    pipe = type("Pipe", (), {})
    exec(f"def __call__(self, prompt, {name}=None): ...", found := {})
    pipe.__call__ = found["__call__"]  # type: ignore[operator]
    ((given, value),) = call_arguments(pipe(), Picture("a fox", image=tmp_path / "red.png")).items()
    assert given == name
    (picture,) = value if kind == "list" else [value]
    assert picture.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("command", ["arena", "calibrate", "tune", "demo"])
def test_commands_without_a_picture_refuse_pipelines_that_need_one(
    ras_dit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("was loaded"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "QwenImageEditPipeline"}')
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\nan owl\na cat\na dog\n")
    flags: tuple[object, ...] = () if command == "demo" else ("--prompts-file", prompts)
    if command == "tune":
        pytest.importorskip("optuna")
        flags = (*flags, "--min-psnr", 30, "--calibration", 2, "--validation", 2)
    where = tmp_path / {"calibrate": "x.json", "demo": "x.png"}.get(command, "x")
    code, _, err = ras_dit(command, "-m", tmp_path / "model", *flags, "-o", where)
    assert code == 2
    assert "needs image" in err
    assert "(other commands take no picture)" in err
    assert err.count("\n") == 1


def test_pictures_are_called_what_they_always_were() -> None:
    """A batch that an earlier version began goes on: the names are those of before there were the later fields."""
    batch = Batch("embedded", None, "auto", Path("out"), saves_trace=False, fps=16)
    asked = {"height": 64, "width": 48, "negative_prompt": "a cat"}
    assert batch.path(Picture("a fox")).name == "a-fox-seed0-db69aade.png"
    assert batch.path(Picture("a fox", 3, 8, 2.0, **asked)).name == "a-fox-seed3-68fd6725.png"
    assert batch.path(Picture("a fox", num_frames=9)).name == "a-fox-seed0-7f0801a5.png"
    assert batch.path(Picture("a fox", true_cfg_scale=3.0)).name != "a-fox-seed0-db69aade.png"
