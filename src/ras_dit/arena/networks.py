"""The networks of FID and LPIPS, for weights files as they are published.

torch-fidelity and torchmetrics have both networks too, but neither without torchvision, and neither gives sFID's maps.
The tests hold these to theirs, where they can be imported.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INCEPTION_SIZE = 299
SPATIAL_CHANNELS = 7
Kernel: TypeAlias = "int | tuple[int, int]"


@dataclass(frozen=True)
class Conv:
    """A convolution by the name that the weights file has for it; with stride 1 it keeps the size."""

    name: str
    channels: int
    kernel: Kernel = 1
    stride: int = 1


Chain: TypeAlias = "tuple[Conv | tuple[Conv, Conv], ...]"  # a pair of convolutions: both of what came before


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, before: int, after: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, C, H, W]."""
        return F.relu(self.bn(self.conv(maps)))


class Mixed(nn.Module):
    """Chains of convolutions on the same maps and a pooled branch, side by side in the channels.

    Args:
        before: channels of the input.
        chains: in the order of their channels in the output.
        pool: ``mean`` or ``max`` of 3 x 3, the size kept, then a convolution ``branch_pool``; ``stride``: the maximum
            at every second place, without a convolution.
        pooled: channels of that convolution.
    """

    def __init__(
        self, before: int, chains: Sequence[Chain], pool: Literal["mean", "max", "stride"], pooled: int = 0
    ) -> None:
        super().__init__()
        self.chains, self.pool = list(chains), pool
        for chain in chains:
            channels = before
            for link in chain:
                for conv in link if isinstance(link, tuple) else (link,):
                    kernel = conv.kernel if isinstance(conv.kernel, tuple) else (conv.kernel, conv.kernel)
                    padding = (kernel[0] // 2, kernel[1] // 2) if conv.stride == 1 else (0, 0)
                    self.add_module(conv.name, ConvNorm(channels, conv.channels, kernel, conv.stride, padding))
                    after = conv.channels
                channels = after
        if pool != "stride":
            self.branch_pool = ConvNorm(before, pooled, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, C, H, W]."""
        found = []
        for chain in self.chains:
            last = maps
            for link in chain:
                convs = link if isinstance(link, tuple) else (link,)
                last = torch.cat([self.get_submodule(conv.name)(last) for conv in convs], dim=1)
            found.append(last)
        return torch.cat([*found, self._pooled(maps)], dim=1)

    def _pooled(self, maps: Tensor) -> Tensor:
        if self.pool == "stride":
            return F.max_pool2d(maps, 3, stride=2)
        if self.pool == "max":
            return self.branch_pool(F.max_pool2d(maps, 3, stride=1, padding=1))
        return self.branch_pool(F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False))


def _mixed_5(before: int, pooled: int) -> Mixed:
    five = (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, 5))
    three = (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, 3), Conv("branch3x3dbl_3", 96, 3))
    return Mixed(before, [(Conv("branch1x1", 64),), five, three], "mean", pooled)


def _mixed_6a() -> Mixed:
    three = (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, 3), Conv("branch3x3dbl_3", 96, 3, stride=2))
    return Mixed(288, [(Conv("branch3x3", 384, 3, stride=2),), three], "stride")


def _mixed_6(inner: int) -> Mixed:
    wide, high = (1, 7), (7, 1)
    once = (Conv("branch7x7_1", inner), Conv("branch7x7_2", inner, wide), Conv("branch7x7_3", 192, high))
    kernels = ((2, high), (3, wide), (4, high))
    twice = (Conv("branch7x7dbl_1", inner), *(Conv(f"branch7x7dbl_{i}", inner, kernel) for i, kernel in kernels))
    return Mixed(768, [(Conv("branch1x1", 192),), once, (*twice, Conv("branch7x7dbl_5", 192, wide))], "mean", 192)


def _mixed_7a() -> Mixed:
    three = (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, 3, stride=2))
    seven = (Conv("branch7x7x3_1", 192), Conv("branch7x7x3_2", 192, (1, 7)), Conv("branch7x7x3_3", 192, (7, 1)))
    return Mixed(768, [three, (*seven, Conv("branch7x7x3_4", 192, 3, stride=2))], "stride")


def _mixed_7(before: int, pool: Literal["mean", "max"]) -> Mixed:
    def fork(name: str) -> tuple[Conv, Conv]:
        return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))

    three = (Conv("branch3x3_1", 384), fork("branch3x3_2"))
    twice = (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3"))
    return Mixed(before, [(Conv("branch1x1", 320),), three, twice], pool, 192)


@dataclass(frozen=True)
class InceptionFeatures:
    """What FID looks at, pooled [B, 2048], and what sFID does, spatial [B, 7 * 17 * 17]."""

    pooled: Tensor
    spatial: Tensor


class Inception(nn.Module):
    """The InceptionV3 of FID: TensorFlow's of 2015, which pools otherwise than torchvision's.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016; the file is that of
        torch-fidelity (or pytorch-fid), converted from TensorFlow's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            OrderedDict(
                Conv2d_1a_3x3=ConvNorm(3, 32, 3, stride=2),
                Conv2d_2a_3x3=ConvNorm(32, 32, 3),
                Conv2d_2b_3x3=ConvNorm(32, 64, 3, padding=1),
                max_1=nn.MaxPool2d(3, 2),
                Conv2d_3b_1x1=ConvNorm(64, 80, 1),
                Conv2d_4a_3x3=ConvNorm(80, 192, 3),
                max_2=nn.MaxPool2d(3, 2),
                Mixed_5b=_mixed_5(192, 32),
                Mixed_5c=_mixed_5(256, 64),
                Mixed_5d=_mixed_5(288, 64),
                Mixed_6a=_mixed_6a(),
                Mixed_6b=_mixed_6(128),
                Mixed_6c=_mixed_6(160),
                Mixed_6d=_mixed_6(160),
                Mixed_6e=_mixed_6(192),
                Mixed_7a=_mixed_7a(),
                Mixed_7b=_mixed_7(1280, "mean"),
                Mixed_7c=_mixed_7(2048, "max"),
            )
        )

    @classmethod
    def from_file(cls, path: Path) -> Inception:
        """Load weights in the form of torch-fidelity.

        Raises:
            ValueError: the file holds something else.
        """
        network = cls()
        weights = {name: tensor for name, tensor in read_weights(path).items() if not name.startswith("fc.")}
        _load(network.layers, weights, path, "torch-fidelity's weights-inception-2015-12-05-6726825d.pth")
        return network.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> InceptionFeatures:
        """Look at pictures, uint8 [B, 3, H, W] of any size.

        sFID's maps are the first 7 channels after the block that TensorFlow calls mixed_6.
        """
        maps = (resize_like_tensorflow(pictures.float(), INCEPTION_SIZE) - 128) / 128
        for name, layer in self.layers.named_children():
            maps = layer(maps)
            if name == "Mixed_6d":
                spatial = maps[:, :SPATIAL_CHANNELS].flatten(1)
        return InceptionFeatures(maps.mean((2, 3)), spatial)


def resize_like_tensorflow(pictures: Tensor, size: int) -> Tensor:
    """Resize [B, C, H, W] to a square bilinearly, as TensorFlow 1 did: pixel i is taken at i * before / after."""
    for dim in (3, 2):
        before = pictures.shape[dim]
        place = torch.arange(size, device=pictures.device, dtype=torch.float32) * (before / size)
        low = place.long().clamp_max(before - 1)
        high = (low + 1).clamp_max(before - 1)
        share = (place - low).view((size,) if dim == 3 else (size, 1))
        first, second = pictures.index_select(dim, low), pictures.index_select(dim, high)
        pictures = first + (second - first) * share
    return pictures


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors or a torch file; no code in it is run.

    Raises:
        ValueError: the file cannot be read so.
    """
    import pickle
    import zipfile

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: got a file that is no state dict ({error}); download it anew.") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path}: got {type(weights).__name__}; allowed: a state dict of tensors.")
    return weights


def _load(module: nn.Module, weights: Mapping[str, Tensor], path: Path, wanted: str) -> None:
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise ValueError(f"{path}: got weights of another network; allowed: {wanted}.") from error


Layer: TypeAlias = "tuple[int, int, int, int] | int"


@dataclass(frozen=True)
class Backbone:
    """A network of pictures that LPIPS has calibrated layers for.

    Attributes:
        heads: name of the calibrated layers.
        layers: (channels, kernel, stride, padding) of a convolution and its ReLU, or the size of a maximum over
            every second place.
        taps: number of layers in front of each of the maps that are compared.
    """

    heads: str
    layers: tuple[Layer, ...]
    taps: tuple[int, ...]


def _level(channels: int, count: int) -> tuple[Layer, ...]:
    return ((channels, 3, 1, 1),) * count


_VGG: tuple[Layer, ...] = (
    *_level(64, 2),
    2,
    *_level(128, 2),
    2,
    *_level(256, 3),
    2,
    *_level(512, 3),
    2,
    *_level(512, 3),
)
_ALEX: tuple[Layer, ...] = ((64, 11, 4, 2), 3, (192, 5, 1, 2), 3, (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
BACKBONES = (Backbone("vgg", _VGG, (4, 9, 16, 23, 30)), Backbone("alex", _ALEX, (2, 5, 8, 10, 12)))


class LPIPS(nn.Module):
    """Learned perceptual distance of two pictures, 0 for equal ones.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018, equation 1;
        version 0.1 of its calibrated layers.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.taps = backbone.taps
        self.features, channels, tapped = nn.Sequential(), 3, []
        for layer in backbone.layers:
            if isinstance(layer, int):
                self.features.append(nn.MaxPool2d(layer, 2))
            else:
                self.features.append(nn.Conv2d(channels, *layer))
                self.features.append(nn.ReLU())
                channels = layer[0]
            if len(self.features) in self.taps:
                tapped.append(channels)
        self.heads = nn.ParameterList([torch.zeros(count) for count in tapped])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)

    @classmethod
    def from_files(cls, path: Path, heads_folder: Path) -> LPIPS:
        """Load torchvision's weights of VGG16 or AlexNet, and the calibrated layers from torchmetrics' folder.

        Raises:
            ValueError: the file holds something else.
        """
        weights = read_weights(path)
        first = weights.get("features.0.weight", torch.zeros(0))
        backbone = BACKBONES[0] if first.shape[-1:] == (3,) else BACKBONES[1]
        network = cls(backbone)
        own = {name.removeprefix("features."): tensor for name, tensor in weights.items() if "features." in name}
        _load(network.features, own, path, "torchvision's vgg16-397923af.pth or alexnet-owt-7be5be79.pth")
        heads = read_weights(heads_folder / f"{backbone.heads}.pth")
        for index, head in enumerate(network.heads):
            head.data.copy_(heads[f"lin{index}.model.1.weight"].flatten())
        return network.eval().requires_grad_(False)

    def forward(self, pictures: Tensor, others: Tensor) -> Tensor:
        """Distances [B] of pictures, uint8 [B, 3, H, W] each, at least 32 pixels a side."""
        difference = torch.zeros(len(pictures), device=pictures.device)
        for head, a, b in zip(self.heads, self._maps(pictures), self._maps(others), strict=True):
            difference = difference + ((a - b).square() * head.view(-1, 1, 1)).sum(1).mean((1, 2))
        return difference

    def _maps(self, pictures: Tensor) -> list[Tensor]:
        """The tapped maps, the channels at every place of length 1."""
        maps, found = (pictures.float() / 127.5 - 1 - self.shift) / self.scale, []
        for count, layer in enumerate(self.features, start=1):
            maps = layer(maps)
            if count in self.taps:
                found.append(maps / (maps.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return found
