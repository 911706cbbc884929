#!/usr/bin/env bash
# The whole GPU run in one command, on a machine with CUDA, most important first. Results land in benchmarks/results and
# runs/; what was measured already is not measured again: run it once more after an interruption. What fails does not
# stop what comes after it.
#
#   bash benchmarks/gpu.sh                    everything: some hours
#   bash benchmarks/gpu.sh tests sd3 lumina   parts, where a machine is lent by the minute
#
# Parts: tests (some minutes); sd3, lumina (the paper's models at 1024 x 1024 and its ratios, sd3 with text reuse, too:
# eager, compiled and with CUDA graphs); kernels (each by itself, and all of them in Stable Diffusion 3); speed (every
# case that fits, with presets and the crossover); all-tests (kernels on drawn inputs, too); model (training of the embedded model at
# 256 x 256 goes on, and is evaluated); arena (both sizes).
# FOLDER keeps what the speed cases and the kernels have finished (outputs/bench), MINUTES is how long to train (60),
# MODES are those of sd3, lumina and speed, RAS_COMMIT names the commit where there is no git, PYTHON is an interpreter with
# what the project needs; the project itself is taken from here. On a machine that is taken away after ten minutes, with its disk:
#   mkdir -p kept && FOLDER=kept timeout 560 bash benchmarks/gpu.sh tests sd3 2>&1 | tee -a kept/log
# and bring "kept" along next time. (What was compiled is kept where TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR say.)
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHON=${PYTHON:-$(command -v python3 || command -v python)} PYTHONUNBUFFERED=1 TORCH_LOGS=${TORCH_LOGS:-perf_hints}
export PYTHONPATH=src:.${PYTHONPATH:+:$PYTHONPATH}
"$PYTHON" -c 'import diffusers, torch; assert torch.cuda.is_available(), "no CUDA device"' || {
    echo "gpu.sh: $PYTHON needs a CUDA device, and what the project needs (pip install -c constraints.txt '.[dev,arena,tune]')." >&2
    exit 2
}
failed=0 FOLDER=${FOLDER:-outputs/bench}
modes=()
for mode in ${MODES:-eager compiled reduce-overhead}; do modes+=(--mode "$mode"); done
speed() { "$PYTHON" -m benchmarks.speed --device cuda --folder "$FOLDER" --apart "$@"; }
paper() { speed "${modes[@]}" --no-crossover --repeats 3 --ratios "$2" --variants --machine paper --case "$1"; }

all="tests sd3 lumina kernels speed all-tests model arena"
for part in "$@"; do
    [[ " $all " == *" $part "* ]] || { echo "gpu.sh: got $part; allowed: $all" >&2 && exit 2; }
done
for part in ${*:-$all}; do
    case "$part" in
        tests) "$PYTHON" -m pytest -m gpu tests/test_gpu.py || failed=$? ;;
        sd3) paper sd3-medium 1,0.5,0.25,0.125 || failed=$? ;;
        lumina) paper lumina-next 1,0.5,0.25,0.125 || failed=$? ;;
        kernels)
            "$PYTHON" -m benchmarks.kernels --device cuda --folder "$FOLDER" || failed=$?
            speed --no-crossover --repeats 3 --ratios 0.25,0.125 --mode eager --kernels --case sd3-medium || failed=$?
            ;;
        speed) speed "${modes[@]}" --crossover || failed=$? ;;
        all-tests) "$PYTHON" -m pytest -m gpu || failed=$? ;;
        model)
            "$PYTHON" -m recipes.embedded_model.enlarge --out runs/large --device cuda --scenes 60000 --workers 16 --compile \
                --whole-batch 64 --window-batch 128 --minutes "${MINUTES:-60}" || failed=$?
            "$PYTHON" -m recipes.embedded_model.evaluate --out runs/large --size 256 --device cuda || failed=$?
            ;;
        arena)
            "$PYTHON" -m benchmarks.arena --device cuda --pictures 96 --batch 32 --folder runs/arena \
                --result arena_embedded_cuda || failed=$?
            "$PYTHON" -m benchmarks.arena --device cuda --pictures 96 --batch 32 --folder runs/arena_256 --size 256 \
                --result arena_embedded_256_cuda || failed=$?
            ;;
    esac
done
exit "$failed"
