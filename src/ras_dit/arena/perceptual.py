"""Metrics of other people's networks, as far as their weights are at hand: LPIPS, FID, sFID, KID and CLIP score."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ras_dit.arena.distances import MIN_KERNEL_PICTURES, Distance, frechet_between, frechet_to, kernel_to
from ras_dit.arena.metrics import MIN_FRECHET_PICTURES
from ras_dit.files import whole_file

if TYPE_CHECKING:
    from ras_dit.arena.networks import LPIPS, Inception

MIN_LPIPS_SIZE = 32
CLIP_MODEL = "openai/clip-vit-large-patch14"
LPIPS_FILES = ("vgg16-397923af.pth", "alexnet-owt-7be5be79.pth")
INCEPTION_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
LPIPS_HINT = f"give --lpips-weights FILE, torchvision's {LPIPS_FILES[0]} (https://download.pytorch.org/models/)"
INCEPTION_HINT = (
    f"give --inception-weights FILE, torch-fidelity's {INCEPTION_FILES[0]} "
    "(https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0)"
)
CLIP_HINT = f"give --clip-model FOLDER, such as that of `hf download {CLIP_MODEL}`"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Weights:
    """Where networks' files are. None: in the caches of torch hub and Hugging Face, if there; nothing is downloaded.

    Attributes:
        lpips: torchvision's VGG16 or AlexNet.
        inception: the InceptionV3 of torch-fidelity (or pytorch-fid).
        clip: a transformers folder of a CLIP model, or the hub id of one in the cache.
        real: a folder of real pictures for FID, sFID and KID.

    Raises:
        ValueError: a file or folder that is given is not there.
    """

    lpips: Path | None = None
    inception: Path | None = None
    clip: str | None = None
    real: Path | None = None

    def __post_init__(self) -> None:
        for flag, path in (("--lpips-weights", self.lpips), ("--inception-weights", self.inception)):
            if path is not None and not path.is_file():
                raise ValueError(f"{flag}: got {str(path)!r}, which is no file; give one, or leave the option out.")
        if self.real is not None and not self.real.is_dir():
            raise ValueError(f"--real: got {str(self.real)!r}, which is no folder; give one with pictures.")


@dataclass
class Perceptual:
    """The networks that could be loaded; all methods take pictures uint8 [N, 3, H, W], LPIPS and CLIP score videos
    [N, F, 3, H, W], too, and give the mean over their frames.

    Attributes:
        device: that the networks run on.
        lpips: with the file's digest in front, as the others.
        inception: for FID, sFID and KID.
        clip: model and processor.
        real: files of real pictures.
        left_out: metric -> why, and what to give.
        batch: pictures at once.
    """

    device: torch.device
    lpips: tuple[str, LPIPS] | None = None
    inception: tuple[str, Inception] | None = None
    clip: tuple[str, Any, Any] | None = None
    real: tuple[Path, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    batch: int = 16

    @staticmethod
    def load(weights: Weights, device: torch.device | str = "cpu") -> Perceptual:
        """Load what is at hand.

        Raises:
            ValueError: a file that was given holds something else.
        """
        found = Perceptual(torch.device(device))
        found._load_lpips(weights.lpips or _in_hub(LPIPS_FILES))
        found._load_inception(weights.inception or _in_hub(INCEPTION_FILES), weights.real)
        found._load_clip(weights.clip)
        return found

    @staticmethod
    def load_lpips(path: Path | None, device: torch.device | str = "cpu") -> Perceptual:
        """Load nothing but LPIPS.

        Raises:
            ValueError: it is not at hand, or the file holds something else.
        """
        found = Perceptual(torch.device(device))
        found._load_lpips(Weights(lpips=path).lpips or _in_hub(LPIPS_FILES))
        if found.lpips is None:
            raise ValueError(f"lpips: got {found.left_out['lpips']}")
        return found

    def _load_lpips(self, path: Path | None) -> None:
        from ras_dit.arena.networks import LPIPS

        package = importlib.util.find_spec("torchmetrics")
        if path is None:
            self.left_out["lpips"] = f"no weights; {LPIPS_HINT}."
        elif package is None or not package.submodule_search_locations:
            self.left_out["lpips"] = "no torchmetrics (calibrated layers): `pip install '.[metrics]'` in the checkout."
        else:
            heads = Path(package.submodule_search_locations[0]) / "functional" / "image" / "lpips_models"
            self.lpips = (_digest(path), LPIPS.from_files(path, heads).to(self.device))

    def _load_inception(self, path: Path | None, real: Path | None) -> None:
        from ras_dit.arena.networks import Inception

        if path is None:
            self.left_out |= dict.fromkeys(("fid", "sfid", "kid"), f"no weights; {INCEPTION_HINT}.")
            return
        self.inception = (_digest(path), Inception.from_file(path).to(self.device))
        if real is None:
            why = "no real pictures; give --real FOLDER."
            self.left_out |= dict.fromkeys(("fid_real", "sfid_real", "kid_real"), why)
        else:
            self.real = picture_files(real)

    def _load_clip(self, source: str | None) -> None:
        from transformers import CLIPModel, CLIPProcessor

        folder = _clip_folder(source)
        if folder is None:
            self.left_out["clip"] = f"no model; {CLIP_HINT}."
            return
        try:
            model = CLIPModel.from_pretrained(folder, local_files_only=True).eval().to(self.device)
            processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"--clip-model: got {str(folder)!r}, which does not load ({error}); {CLIP_HINT}."
            ) from error
        files = [path for path in sorted(folder.glob("*")) if path.is_file()]
        self.clip = (_digest(*files), model, processor)

    def lpips_to(self, pictures: Tensor, others: Tensor, cache: Path) -> list[float]:
        """Distance of every picture to its twin; 0 is equal."""
        assert self.lpips is not None
        key = (self.lpips[0], pictures, others)
        return _cached(cache, key, lambda: {"lpips": self.lpips_between(pictures, others)})["lpips"].tolist()

    @torch.no_grad()
    def lpips_between(self, pictures: Tensor, others: Tensor) -> Tensor:
        """As `lpips_to`, computed every time, [N]."""
        assert self.lpips is not None
        network = self.lpips[1]
        parts = zip(_frames(pictures).split(self.batch), _frames(others).split(self.batch), strict=True)
        found = torch.cat([network(a.to(self.device), b.to(self.device)).cpu() for a, b in parts])
        return found.reshape(len(pictures), -1).mean(dim=1)

    @torch.no_grad()
    def clip_scores(self, pictures: Tensor, prompts: Sequence[str], cache: Path) -> list[float]:
        """100 times the cosine of a picture's and its prompt's embeddings.

        Source: Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", 2021, with
            torchmetrics' factor of 100, and without cutting off what lies below 0.
        """
        assert self.clip is not None
        digest, model, processor = self.clip
        longest = model.config.text_config.max_position_embeddings
        options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": longest}

        def compute() -> dict[str, Tensor]:
            scores, frames = [], _frames(pictures)
            each = len(frames) // len(pictures)
            for start in range(0, len(frames), self.batch):
                part = frames[start : start + self.batch]
                words = [prompts[index // each] for index in range(start, start + len(part))]
                inputs = processor(text=words, images=list(part), **options).to(self.device)
                found = model(**inputs)
                scores.append(100 * (found.image_embeds * found.text_embeds).sum(1).float().cpu())
            return {"clip": torch.cat(scores).reshape(len(pictures), each).mean(dim=1)}

        return _cached(cache, (digest, pictures, *prompts), compute)["clip"].tolist()

    def inception_features(self, pictures: Tensor, cache: Path) -> dict[str, Tensor]:
        """Features ``fid`` [N, 2048] and ``sfid`` [N, 2023]."""
        assert self.inception is not None
        return _cached(cache, (self.inception[0], pictures), lambda: self._look(pictures.split(self.batch)))

    def real_features(self, cache: Path) -> dict[str, Tensor]:
        """Those of the real pictures; empty without."""
        if self.inception is None or not self.real:
            return {}
        return _cached(cache, (self.inception[0], *self.real), lambda: self._look(_opened(self.real)))

    @torch.no_grad()
    def _look(self, parts: Iterable[Tensor]) -> dict[str, Tensor]:
        assert self.inception is not None
        found = [self.inception[1](part.to(self.device)) for part in parts]
        return {
            "fid": torch.cat([part.pooled for part in found]).cpu(),
            "sfid": torch.cat([part.spatial for part in found]).cpu(),
        }

    def set_distances(
        self, own: dict[str, Tensor], dense: dict[str, Tensor], real: dict[str, Tensor]
    ) -> dict[str, Distance]:
        """Distances of Inception's features to those of the dense pictures and, unless empty, of real ones.

        Returns:
            ``fid_dense``, ``sfid_dense``, ``fid_real`` and ``sfid_real`` from 100 pictures on, ``kid_real`` from 4.
        """
        where = self.device if self.device.type == "cuda" else torch.device("cpu")  # some others have no float64
        found: dict[str, Distance] = {}
        for name in ("fid", "sfid"):
            features = own[name].to(where)
            if len(features) >= MIN_FRECHET_PICTURES:
                found[f"{name}_dense"] = frechet_between(features, dense[name].to(where))
                if real:
                    found[f"{name}_real"] = frechet_to(features, real[name].to(where))
        if real and len(own["fid"]) >= MIN_KERNEL_PICTURES:
            found["kid_real"] = kernel_to(own["fid"].to(where), real["fid"].to(where))
        return found


def _frames(pictures: Tensor) -> Tensor:
    """All frames of videos, or the pictures: [N * F, 3, H, W]."""
    return pictures.flatten(0, -4)


def picture_files(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder.

    Raises:
        ValueError: fewer than two.
    """
    paths = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES))
    if len(paths) < 2:
        raise ValueError(f"--real: got {len(paths)} pictures in {folder}; allowed: at least 2 ({', '.join(PICTURES)}).")
    return paths


def _opened(paths: Iterable[Path]) -> Iterator[Tensor]:
    """Pictures of any sizes, one by one, uint8 [1, 3, H, W]."""
    from PIL import Image

    for path in paths:
        yield torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0)[None]


def _in_hub(names: Sequence[str]) -> Path | None:
    """The first of these files in torch hub's cache."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _clip_folder(source: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if source is not None and Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(source or CLIP_MODEL, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        if source is None:
            return None
        raise ValueError(f"--clip-model: got {source!r}, no folder and not in the cache; {CLIP_HINT}.") from error


def _digest(*parts: Path | Tensor | str) -> str:
    """What tells files, pictures and words apart."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    found.update(block)
        elif isinstance(part, Tensor):
            found.update(str(tuple(part.shape)).encode())
            found.update(part.contiguous().numpy().tobytes())
        else:
            found.update(part.encode() + b"\0")
    return found.hexdigest()


def _cached(path: Path, key: Sequence[Path | Tensor | str], compute: Callable[[], dict[str, Tensor]]) -> Any:
    """What was computed of the same pictures with the same weights before, else computed now and kept at `path`."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    digest = _digest(*key)
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") == digest:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    found = compute()
    with whole_file(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, temporary, metadata={"key": digest})
    return found
