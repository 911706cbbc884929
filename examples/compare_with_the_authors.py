"""The authors' settings and ours at the same schedule: how far each ends from the dense picture."""

import torch

import ras_dit
from ras_dit import RASConfig

pipe = ras_dit.load_embedded()
pipe.set_progress_bar_config(disable=True)


def paint() -> object:
    generator = torch.Generator().manual_seed(3)
    return pipe("a fox in the snow", generator=generator, guidance_scale=4.0, max_sequence_length=1).images[0]


dense = paint()
for name, config in {
    "authors": RASConfig.reference(0.25, reset_steps=(12, 20), high_ratio=0.3),
    "ours": RASConfig(sample_ratio=0.25, warmup_steps=4, refresh_steps=(12, 20)),
}.items():
    with ras_dit.accelerate(pipe, config) as handle:
        image = paint()
    print(f"{name:>8}: T = {handle.trace.token_steps:.2f}, PSNR {ras_dit.psnr(image, dense):.1f} dB")
