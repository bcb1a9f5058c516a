#!/usr/bin/env bash
# Every check and benchmark that needs an NVIDIA GPU, in one call of at most ten minutes. Results go to $OUT
# (default benchmark-results/): objectives.json, step-BATCH.json, loader.json, epoch.json.
#
#   benchmarks/gpu.sh               with the `python3` that holds PyTorch and torchvision (PYTHON=... names another)
#   SMALL=1 benchmarks/gpu.sh       all of it with tiny sizes on a CPU, to check the script
#
# A machine without network installs missing packages from ./wheels. Fill that folder on a machine with network:
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --dest wheels \
#       docstring-parser tomli-w hatchling trove-classifiers
# PyTorch is not touched: dependencies are not followed. Without ./wheels nothing is installed; plrc must be there.
#
# A step that fails or exceeds its time does not stop the others; the status is then 1 and the last line names it.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmark-results}
mkdir -p "$out"
failed=()

# step NAME SECONDS COMMAND...
step() {
    echo "== $1 (at most $2 s)"
    timeout --kill-after=5 "${@:2}" || failed+=("$1 (status $?)")  # 124: over its time
}

# bench NAME SECONDS VERB OPTIONS...
bench() {
    step "$1" "$2" "$python" -m benchmarks "${@:3}" --json "$out/$1.json"
}

export OMP_WAIT_POLICY=passive
if [ -d wheels ]; then
    pip=("$python" -m pip install --quiet --no-index --no-deps)
    step "install the wheels" 50 "${pip[@]}" wheels/*.whl
    step "install plrc" 20 "${pip[@]}" --no-build-isolation .
fi
step "fused = dense" 60 "$python" -m pytest tests/objectives -k cuda -q

if [ "${SMALL:-0}" = 1 ]; then
    tiny=(--backbone resnet18 --size 64 --repeats 1 --device cpu)
    bench objectives 100 objectives --points 16 --references 16 --repeats 1 --device cpu
    bench step-4 100 step --batch 4 "${tiny[@]}"
    bench loader 60 loader --images 4 --batch 4 --repeats 1
    bench epoch 100 epoch --batch 4 --steps 1 --workers 0 "${tiny[@]}"
else
    bench objectives 90 objectives --device cuda
    for batch in 64 128 256 512; do
        bench "step-$batch" 55 step --batch "$batch" --backbone resnet50 --size 224 --device cuda
    done
    bench loader 50 loader
    bench epoch 100 epoch --batch 256 --backbone resnet50 --size 224 --device cuda
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed:'
    printf ' %s;' "${failed[@]}"
    echo
    exit 1
fi
echo "all done; results in $out"
