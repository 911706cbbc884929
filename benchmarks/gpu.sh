#!/usr/bin/env bash
# The whole GPU run in one command, on a machine with CUDA: GPU tests; every speed case that fits the device, eager,
# compiled and with CUDA graphs, with the crossover; kernels; the embedded model at 256 x 256 (1,024 image tokens) with its
# evaluation; the arena on the shipped model. Results land in benchmarks/results and runs/. What was measured already is
# not measured again: run it once more after an interruption. A case that is refused does not stop the others.
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pytest -m gpu
refused=0
python -m benchmarks.speed --device cuda --crossover || refused=$?
python -m benchmarks.kernels --device cuda
python -m recipes.embedded_model.run --out runs/embedded-256 --device cuda --size 256
python -m benchmarks.arena --device cuda --pictures 96 --batch 32 --folder runs/arena
exit "$refused"
