"""LPIPS, FID, sFID, KID and CLIP score, with random networks in the form of the published ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ras_dit.arena import networks
from ras_dit.arena.distances import frechet_to
from ras_dit.arena.networks import LPIPS, Inception, resize_like_tensorflow
from ras_dit.arena.perceptual import LPIPS_FILES, Perceptual, Weights
from stand_ins import clip_folder, inception_file, lpips_file

needs_torchmetrics = pytest.mark.skipif(
    importlib.util.find_spec("torchmetrics") is None, reason="needs torchmetrics: pip install '.[metrics]'"
)
ROUNDING = 1e-3  # of 2048 square roots of eigenvalues that should be 0, from float32 features


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("weights")
    return SimpleNamespace(
        inception=inception_file(folder / "inception.pth"),
        alex=lpips_file(folder / "alex.pth", "alex"),
        vgg=lpips_file(folder / "vgg.pth", "vgg"),
        clip=clip_folder(folder / "clip"),
    )


@pytest.fixture(autouse=True)
def _no_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever this machine has downloaded is out of sight."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def pictures(count: int, seed: int = 0, size: tuple[int, int] = (48, 64)) -> torch.Tensor:
    """Coarse random colours, uint8 [N, 3, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (count, 3, size[0] // 8, size[1] // 8), generator=generator)
    return small.repeat_interleave(8, 2).repeat_interleave(8, 3).byte()


def noisy(clean: torch.Tensor, strength: float) -> torch.Tensor:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(7))
    return (clean + strength * noise).round().clamp(0, 255).byte()


@needs_torchmetrics
@pytest.mark.parametrize("heads", ["alex", "vgg"])
def test_lpips_is_0_for_equal_pictures_grows_with_noise_and_is_torchmetrics(
    files: SimpleNamespace, tmp_path: Path, heads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Perceptual.load(Weights(lpips=getattr(files, heads)))
    assert "lpips" not in found.left_out
    clean = pictures(3)
    values = [found.lpips_to(clean, noisy(clean, s), tmp_path / f"{s}.safetensors") for s in (0, 10, 40)]
    assert values[0] == [0.0, 0.0, 0.0]
    assert all(0 < few < many for few, many in zip(*values[1:], strict=True))
    assert values[2] == found.lpips_to(clean, noisy(clean, 40), tmp_path / "again.safetensors")

    import torchmetrics.functional.image.lpips as theirs

    assert found.lpips is not None
    own = found.lpips[1]
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_, **__: own.features)  # else from torchvision
    twin = theirs._NoTrainLpips(net=heads, pnet_rand=True)
    expected = twin(clean / 127.5 - 1, noisy(clean, 40) / 127.5 - 1).flatten()
    assert values[2] == pytest.approx(expected.tolist(), rel=1e-5)


def test_inception_is_torch_fidelitys(files: SimpleNamespace) -> None:
    pytest.importorskip("torchvision", reason="torch-fidelity needs torchvision", exc_type=ImportError)
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    twin = fidelity.FeatureExtractorInceptionV3("twin", ["2048"], feature_extractor_weights_path=str(files.inception))
    seen: list[torch.Tensor] = []
    twin.Mixed_6d.register_forward_hook(lambda module, inputs, output: seen.append(output))
    (expected,) = twin(pictures(2))
    found = Inception.from_file(files.inception)(pictures(2))
    torch.testing.assert_close(found.pooled, expected)
    torch.testing.assert_close(found.spatial, seen[0][:, :7].flatten(1))


def test_resizing_is_tensorflows() -> None:
    """Pixel i is taken at i * before / after, the last ones from the edge alone."""
    row = torch.tensor([[[[0.0, 10.0, 20.0]]]]).repeat(1, 1, 3, 1)
    found = resize_like_tensorflow(row, 6)
    assert found[0, 0, 0].tolist() == [0, 5, 10, 15, 20, 20]
    assert torch.equal(resize_like_tensorflow(row.mT, 6), found.mT)
    assert torch.equal(resize_like_tensorflow(row, 3), row)


@pytest.fixture(scope="module")
def inception(files: SimpleNamespace) -> Inception:
    return Inception.from_file(files.inception)


def test_fid_is_0_to_itself_and_grows_with_noise(inception: Inception) -> None:
    clean = pictures(6)
    first = inception(clean)
    assert first.pooled.shape == (6, 2048)
    assert first.spatial.shape == (6, 7 * 17 * 17)
    assert frechet_to(first.pooled, first.pooled).value == pytest.approx(0, abs=ROUNDING)
    few, many = (inception(noisy(clean, strength)) for strength in (10, 40))
    for name in ("pooled", "spatial"):
        distances = [frechet_to(getattr(one, name), getattr(first, name)).value for one in (few, many)]
        assert ROUNDING < distances[0] < distances[1]


def test_sfid_sees_where_things_are_and_means_over_places_do_not(inception: Inception) -> None:
    """FID looks at means over places: the same maps with their places shuffled are the same to it, not to sFID."""
    found = inception(pictures(6, seed=1))
    maps = found.spatial.unflatten(1, (7, 17 * 17))
    shuffled = maps[:, :, torch.randperm(17 * 17, generator=torch.Generator().manual_seed(0))]
    assert frechet_to(shuffled.mean(2), maps.mean(2)).value == pytest.approx(0, abs=ROUNDING)
    assert frechet_to(shuffled.flatten(1), found.spatial).value > 1
    last: list[torch.Tensor] = []
    with_hook = inception.layers.get_submodule("Mixed_7c").register_forward_hook(
        lambda module, inputs, output: last.append(output)
    )
    assert torch.equal(inception(pictures(6, seed=1)).pooled, last[0].mean((2, 3)))
    with_hook.remove()


def test_distances_to_dense_and_real_pictures() -> None:
    """Frechet distances from 100 pictures on, KID from 2, FID with an interval from 2048."""
    found = Perceptual(torch.device("cpu"))

    def features(count: int, shift: float) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(count)
        return {name: torch.randn(count, 24, generator=generator) + shift for name in ("fid", "sfid")}

    few = found.set_distances(features(12, 0.5), features(12, 0.0), features(30, 0.0))
    assert list(few) == ["kid_real"]
    many = found.set_distances(features(100, 0.5), features(100, 0.0), features(300, 0.0))
    assert set(many) == {"fid_dense", "fid_real", "sfid_dense", "sfid_real", "kid_real"}
    assert many["fid_dense"].value == pytest.approx(24 * 0.25, rel=1e-3)
    assert set(found.set_distances(features(100, 0.5), features(100, 0.0), {})) == {"fid_dense", "sfid_dense"}


@torch.no_grad()
def test_clip_score_is_100_times_the_cosine(files: SimpleNamespace, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    prompts = ["a fox", "two dogs that run through a very long prompt indeed", "cat"]
    painted = pictures(3, size=(32, 32))
    found = Perceptual.load(Weights(clip=str(files.clip)))
    found.batch = 2
    values = found.clip_scores(painted, prompts, tmp_path / "clip.safetensors")
    model, processor = CLIPModel.from_pretrained(files.clip), CLIPProcessor.from_pretrained(files.clip)
    for value, prompt, picture in zip(values, prompts, painted, strict=True):
        words = processor(text=prompt, return_tensors="pt", truncation=True)
        pixels = processor(images=Image.fromarray(picture.permute(1, 2, 0).numpy()), return_tensors="pt")
        text = model.text_projection(model.text_model(**words).pooler_output)[0]
        image = model.visual_projection(model.vision_model(**pixels).pooler_output)[0]
        assert value == pytest.approx(100 * float(torch.cosine_similarity(text, image, dim=0)), abs=1e-3)
    films = torch.stack([painted, painted.flip(0), painted[[1, 1, 0]]])
    frames = found.clip_scores(films.flatten(0, 1), [prompt for prompt in prompts for _ in films], tmp_path / "frames")
    means = [sum(frames[at : at + 3]) / 3 for at in (0, 3, 6)]
    assert found.clip_scores(films, prompts, tmp_path / "films") == pytest.approx(means, abs=1e-4)


def test_what_is_not_at_hand_is_left_out_with_a_line_that_says_what_to_give(tmp_path: Path) -> None:
    found = Perceptual.load(Weights())
    assert set(found.left_out) == {"lpips", "fid", "sfid", "kid", "clip"}
    assert found.left_out["lpips"].startswith("no weights; give --lpips-weights FILE, torchvision's vgg16-397923af.pth")
    assert "weights-inception-2015-12-05-6726825d.pth" in found.left_out["fid"]
    assert "hf download openai/clip-vit-large-patch14" in found.left_out["clip"]
    assert found.real_features(tmp_path / "real.safetensors") == {}


@needs_torchmetrics
def test_weights_are_found_in_the_caches(files: SimpleNamespace, tmp_path: Path) -> None:
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / LPIPS_FILES[1]).write_bytes(files.alex.read_bytes())
    found = Perceptual.load(Weights())
    assert found.lpips is not None
    assert "lpips" not in found.left_out


def test_without_torchmetrics_lpips_says_how_to_get_it(files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install '.[metrics]'" in Perceptual.load(Weights(lpips=files.alex)).left_out["lpips"]


def test_files_that_are_wrong_are_refused_with_what_to_give(files: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--lpips-weights: got .*no file; give one"):
        Weights(lpips=tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"--real: got .*no folder; give one with pictures"):
        Weights(real=tmp_path / "none")
    with pytest.raises(ValueError, match="weights of another network; allowed: torch-fidelity's"):
        Inception.from_file(files.alex)
    with pytest.raises(ValueError, match="weights of another network; allowed: torchvision's"):
        LPIPS.from_files(files.inception, tmp_path)
    text = tmp_path / "text.pth"
    text.write_text("not found")
    with pytest.raises(ValueError, match="no state dict"):
        networks.read_weights(text)
    with pytest.raises(ValueError, match="--clip-model: got 'nobody/nothing', no folder and not in the cache"):
        Perceptual.load(Weights(clip="nobody/nothing"))
    with pytest.raises(ValueError, match=r"--clip-model: got .* does not load"):
        Perceptual.load(Weights(clip=str(tmp_path)))
    with pytest.raises(ValueError, match="--real: got 0 pictures"):
        Perceptual.load(Weights(inception=files.inception, real=tmp_path))


def test_features_are_kept_beside_the_pictures_until_those_change(
    files: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    for index, size in enumerate(((40, 56), (48, 40))):  # of any size
        Image.fromarray(np.asarray(pictures(1, index, size)[0].permute(1, 2, 0))).save(real / f"{index}.png")
    found = Perceptual.load(Weights(inception=files.inception, real=real))
    looks: list[int] = []
    look: Any = Perceptual._look
    monkeypatch.setattr(Perceptual, "_look", lambda self, parts: looks.append(1) or look(self, parts))
    cache = tmp_path / "inception.safetensors"
    first = found.inception_features(pictures(1), cache)
    again = found.inception_features(pictures(1), cache)
    assert looks == [1]
    assert all(torch.equal(first[name], again[name]) for name in ("fid", "sfid"))
    assert not torch.equal(found.inception_features(pictures(1, seed=1), cache)["fid"], first["fid"])
    assert found.real_features(tmp_path / "real.safetensors")["fid"].shape == (2, 2048)
    assert len(looks) == 3
    assert [path.name for path in tmp_path.glob(".*part*")] == []
