#!/usr/bin/env bash
# The whole GPU run in one command, on a machine with CUDA: GPU tests, the speed cases at real dimensions, and the
# embedded model at 256 x 256 (1,024 image tokens) with its evaluation, and the arena on the shipped model. Results
# land in benchmarks/results and runs/.
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pytest -m gpu
python -m benchmarks.speed --device cuda
python -m recipes.embedded_model.run --out runs/embedded-256 --device cuda --size 256
python -m benchmarks.arena --device cuda --pictures 96 --batch 32 --folder runs/arena
