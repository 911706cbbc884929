"""A ranking of your own against that of a preset: the same pictures in the arena, with as many tokens.

The score here is how far a token goes in the next step. A score may go by the noise and the latents of the last
evaluation, by the last two computed noises of every token, and by how long each has waited (`ras_dit.ScoreInputs`).
"""

import argparse
import hashlib
import inspect
from pathlib import Path

import torch

import ras_dit
from ras_dit.arena import Arena, Method, Scene, report
from ras_dit.arena.report import text
from ras_dit.embedded import embedded_prompts

CONFIG = ras_dit.RASConfig.preset("regions")


def distance_to_go(known: ras_dit.ScoreInputs) -> torch.Tensor:
    return known.noise.float().norm(dim=-1) * abs(known.next_sigma - known.sigma)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--folder", type=Path, default=Path("outputs/own_score"), help="what is painted there is kept")
    arguments = parser.parse_args()
    pipe = ras_dit.load_embedded()
    pipe.set_progress_bar_config(disable=True)
    # a changed score is painted anew
    digest = hashlib.sha256(inspect.getsource(distance_to_go).encode()).hexdigest()[:6]
    methods = [
        Method("preset regions", "ras", config=CONFIG),
        Method(
            f"distance to go {digest}", "ras", apply=lambda pipe: ras_dit.enable(pipe, CONFIG, score=distance_to_go)
        ),
    ]
    scenes = [Scene(prompt, seed) for seed, prompt in enumerate(embedded_prompts(arguments.pictures))]
    call = {"guidance_scale": 4.0, "max_sequence_length": 1}  # the embedded model has no T5
    arena = Arena(arguments.folder, scenes, methods, call)
    arena.run(pipe)
    print(text(report(arena, has_plot=False)))


if __name__ == "__main__":
    main()
