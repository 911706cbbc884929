#!/usr/bin/env bash
# The whole GPU run in one command, on a machine with CUDA: GPU tests; every speed case that fits the device, eager,
# compiled and with CUDA graphs, with the crossover; kernels; the embedded model at 256 x 256 (1,024 image tokens), whose
# training goes on, with its evaluation; the arena at both sizes. Results land in benchmarks/results and runs/. What was
# measured already is not measured again: run it once more after an interruption. What fails does not stop what comes
# after it.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0
python -m pytest -m gpu || failed=$?
python -m benchmarks.speed --device cuda --crossover || failed=$?
python -m benchmarks.kernels --device cuda || failed=$?
python -m recipes.embedded_model.enlarge --out runs/large --device cuda --scenes 60000 --workers 16 --compile \
    --whole-batch 64 --window-batch 128 --minutes 60 || failed=$?
python -m recipes.embedded_model.evaluate --out runs/large --size 256 --device cuda || failed=$?
python -m benchmarks.arena --device cuda --pictures 96 --batch 32 --folder runs/arena \
    --result arena_embedded_cuda || failed=$?
python -m benchmarks.arena --device cuda --pictures 96 --batch 32 --folder runs/arena_256 --size 256 \
    --result arena_embedded_256_cuda || failed=$?
exit "$failed"
