"""Every metric of a method's pictures, and whether two methods can be told apart by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ras_dit.arena import metrics
from ras_dit.arena.distances import MIN_KERNEL_PICTURES, Distance, frechet_between
from ras_dit.arena.methods import Method
from ras_dit.arena.perceptual import MIN_LPIPS_SIZE, Perceptual
from ras_dit.arena.run import CONVERGED, DENSE, Arena


@dataclass(frozen=True)
class Measured:
    """What a method's pictures are worth.

    Attributes:
        per_picture: metric -> a value of every picture.
        distances: metric -> how far all of them are from a set.
    """

    per_picture: dict[str, list[float]]
    distances: dict[str, Distance] = field(default_factory=dict)


class Measures:
    """The metrics of one arena, with what it takes to measure any of its methods.

    Args:
        arena: its pictures have to be painted.
        perceptual: networks at hand, None for none of them.
    """

    def __init__(self, arena: Arena, perceptual: Perceptual | None) -> None:
        self.arena, self.perceptual = arena, perceptual
        self.references = {method.slug: arena.pictures(method) for method in arena.methods[:2]}
        knows_scenes = all(scene.subject is not None for scene in arena.scenes)
        self.judge = metrics.PromptJudge() if knows_scenes else None
        judge = self.judge
        self.features = {} if judge is None else {slug: judge.features(one) for slug, one in self.references.items()}
        self.left_out = {} if perceptual is None else dict(perceptual.left_out)
        self._leave_out_what_cannot_be()
        self.real: dict[str, torch.Tensor] = {}
        if perceptual is not None and self.has("inception"):
            self.real = perceptual.real_features(arena.folder / "real-inception.safetensors")

    @property
    def is_video(self) -> bool:
        return self.references[DENSE].ndim == 5

    def _leave_out_what_cannot_be(self) -> None:
        if self.is_video and self.perceptual is not None and self.perceptual.inception is not None:
            self.left_out |= dict.fromkeys(("fid", "sfid", "kid"), "for pictures; it does not see how a video moves.")
        count, (height, width) = len(self.arena.scenes), self.references[DENSE].shape[-2:]
        if min(height, width) < MIN_LPIPS_SIZE and self.has("lpips"):
            self.left_out["lpips"] = f"pictures of {width} x {height}; needs {MIN_LPIPS_SIZE} pixels a side."
        judged, looked = self.judge is not None, self.has("inception")
        for least, why, names in (
            (metrics.MIN_FRECHET_PICTURES, "a Frechet distance", {"frechet": judged, "fid": looked, "sfid": looked}),
            (MIN_KERNEL_PICTURES, "a kernel distance", {"kernel": judged, "kid": looked}),
        ):
            if count < least:
                wanted = [name for name, is_wanted in names.items() if is_wanted]
                self.left_out |= dict.fromkeys(wanted, f"{count} pictures; {why} needs {least}.")

    def has(self, network: str) -> bool:
        """Is a network at hand, and of use here: ``lpips``, ``inception`` or ``clip``."""
        if network == "inception" and self.is_video:
            return False
        return getattr(self.perceptual, network, None) is not None and network not in self.left_out

    def of(self, method: Method) -> Measured:
        """Measure a method; to itself a reference has what equal pictures have."""
        pictures, per_picture = self.arena.pictures(method), dict[str, list[float]]()
        distances: dict[str, Distance] = {}
        features = None if self.judge is None else self.judge.features(pictures)
        for name, others in self.references.items():
            found = metrics.fidelity(pictures, others)
            if self.perceptual is not None and self.has("lpips"):
                cache = self.arena.folder / method.slug / f"lpips-{name}.safetensors"
                found["lpips"] = self.perceptual.lpips_to(pictures, others, cache)
            if features is not None:
                found["features"] = metrics.apart(features, self.features[name])
                if len(features) >= metrics.MIN_FRECHET_PICTURES:
                    distances[f"frechet_{name}"] = frechet_between(features, self.features[name])
            per_picture |= {f"{kind}_{name}": values for kind, values in found.items()}
        if self.judge is not None and features is not None:
            subjects = [scene.subject or 0 for scene in self.arena.scenes]
            backgrounds = [scene.background or 0 for scene in self.arena.scenes]
            per_picture |= self.judge.follows(pictures, subjects, backgrounds)
            distances |= self.judge.distances(features)
        return self._with_networks(method, pictures, Measured(per_picture, distances))

    def _with_networks(self, method: Method, pictures: torch.Tensor, found: Measured) -> Measured:
        if self.perceptual is None:
            return found
        per_picture, distances, folder = dict(found.per_picture), dict(found.distances), self.arena.folder
        if self.has("clip"):
            prompts = [scene.prompt for scene in self.arena.scenes]
            per_picture["clip"] = self.perceptual.clip_scores(
                pictures, prompts, folder / method.slug / "clip.safetensors"
            )
        if self.has("inception"):
            own, dense = (
                self.perceptual.inception_features(painted, folder / slug / "inception.safetensors")
                for painted, slug in ((pictures, method.slug), (self.references[DENSE], DENSE))
            )
            distances |= self.perceptual.set_distances(own, dense, self.real)
        return Measured(per_picture, distances)


def summary(found: Measured, slug: str) -> dict[str, tuple[float, ...]]:
    """Metric -> estimate and 95 % interval.

    A Frechet distance is there as it is usually given, alone, and, if there are as many pictures as features, as
    ``..._corrected``: without the bias of its number of pictures and with an interval. A reference has no metrics
    against itself.
    """
    values: dict[str, tuple[float, ...]] = {}
    for name, distance in found.distances.items():
        if not distance.is_biased:
            values[name] = distance.interval()
        else:
            values[name] = (distance.value,)
            if distance.has_interval:
                values[f"{name}_corrected"] = distance.interval()
    values |= {name: metrics.mean_interval(one) for name, one in found.per_picture.items()}
    return {name: numbers for name, numbers in values.items() if not is_to_itself(name, slug)}


def is_to_itself(metric: str, slug: str) -> bool:
    """Does a reference's metric compare it with itself."""
    return slug in (DENSE, CONVERGED) and metric.removesuffix("_corrected").endswith(f"_{slug}")


def half_of_dense(arena: Arena) -> Method | None:
    """The dense run of half the steps, which every metric should tell from the dense run."""
    dense = arena.methods[0]
    runs = (method for method in arena.methods[1:] if (method.group, method.solver) == ("dense", dense.solver))
    found = (method for method in runs if abs(2 * method.steps - dense.steps) <= 1 and method.steps < dense.steps)
    return next(found, None)


def told_apart(first: Measured, second: Measured) -> dict[str, dict[str, Any]]:
    """Metric -> what it says of two methods of one arena.

    Returns:
        ``first`` and ``second``, the methods' values; ``difference``, their difference with its 95 % interval, picture
        by picture or, for distances of sets, with the same pictures resampled in both; ``is_told_apart``, whether
        that interval leaves out 0.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, values in first.per_picture.items():
        others = second.per_picture[name]
        mean, other_mean = (sum(each) / len(each) for each in (values, others))
        found[name] = _verdict(mean, other_mean, metrics.better_by(values, others))
    for name, distance in first.distances.items():
        rival = second.distances[name]
        found[name] = _verdict(distance.value, rival.value, distance.difference(rival))
    return found


def _verdict(first: float, second: float, difference: tuple[float, float, float]) -> dict[str, Any]:
    _, low, high = difference
    return {
        "first": shortened(first),
        "second": shortened(second),
        "difference": [shortened(value) for value in difference],
        "is_told_apart": low > 0 or high < 0,
    }


def shortened(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")


def sensitivity(arena: Arena, measured: Mapping[str, Measured]) -> dict[str, Any] | None:
    """Does every metric tell the dense run from that of half its steps; None if the arena has none of half.

    Args:
        arena: of the methods.
        measured: by slug, at least of both.
    """
    half = half_of_dense(arena)
    if half is None or half.slug not in measured:
        return None
    dense = arena.methods[0]
    return {
        "first": dense.name,
        "second": half.name,
        "first_steps": dense.steps,
        "second_steps": half.steps,
        "metrics": told_apart(measured[dense.slug], measured[half.slug]),
    }
