"""The embedded model, dense and with RAS: two pictures, the map of where the compute went, and the summary."""

import torch

import ras_dit

pipe = ras_dit.load_embedded()


def paint() -> object:
    generator = torch.Generator().manual_seed(3)
    # The embedded model has no T5: max_sequence_length=1 keeps the zero rows that stand for it to one.
    return pipe("a fox in the snow", generator=generator, guidance_scale=4.0, max_sequence_length=1).images[0]


paint().save("dense.png")
with ras_dit.accelerate(pipe, preset="regions") as handle:
    image = paint()
image.save("ras.png")
handle.trace.heatmap(image).save("where.png")
print(handle.summary())
