#!/usr/bin/env bash
# What needs an NVIDIA GPU, in three calls of at most ten minutes each; README.md explains them.
#
#   benchmarks/gpu/run.sh checks|scenes|aquarium
#
# PYTHON: the interpreter that has PyTorch (python3). OUT: folder for the results (benchmark-results/). LIMIT: seconds
# (560). PROCESSES: how many share a study (3). WORK: folder for runs (a temporary one). SMALL=1: tiny sizes on a CPU.
#
# A step that fails or exceeds its time does not stop the others; the status is then 1 and the last line names it.
set -uo pipefail
cd "$(dirname "$0")/../.."
call=${1:-}
here=benchmarks/gpu
python=${PYTHON:-python3}
out=${OUT:-benchmark-results}
limit=${LIMIT:-560}
processes=${PROCESSES:-3}
small=${SMALL:-0}
work=${WORK:-$(mktemp -d)}
failed=()
mkdir -p "$out" "$work"
export PYTHONPATH=src:.:$work/site OMP_WAIT_POLICY=passive OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} PYTHONUNBUFFERED=1

# step NAME SECONDS COMMAND...
step() {
    echo "== $1 (at most $2 s)"
    timeout --kill-after=5 "${@:2}" || failed+=("$1 (status $?)")  # 124: over its time
}

# bench NAME SECONDS KIND OPTIONS...: a benchmark, whose result is OUT/NAME.json
bench() {
    step "$1" "$2" "$python" -m benchmarks "${@:3}" --json "$out/$1.json"
}

# study NAME: the study NAME.toml in the time that is left, by several processes. Its lines are OUT/NAME.jsonl; those of
# an earlier call are read from data/NAME.jsonl, so that finished runs are not repeated.
study() {
    local name=$1 folder=$work/$1 file=$work/$1.toml pids=() status number
    mkdir -p "$folder"
    cp "$here/$name.toml" "$file"
    if [ "$small" = 1 ]; then
        sed -E -i 's/= .*# small: (.*)$/= \1/' "$file"
    fi
    if [ -f "$here/data/$name.jsonl" ]; then
        cp "$here/data/$name.jsonl" "$folder/lines.jsonl"
    fi
    for number in $(seq "$processes"); do
        echo "== study $name, process $number (at most $((limit - 40 - SECONDS)) s)"
        timeout --kill-after=30 $((limit - 40 - SECONDS)) \
            "$python" -m plrc study "$file" --out "$folder" >"$work/$name-$number.log" 2>&1 &
        pids+=($!)
        while kill -0 $! 2>/dev/null && [ ! -d "$folder/runs" ]; do
            sleep 1  # the first process generates the scenes
        done
    done
    for number in "${!pids[@]}"; do
        wait "${pids[$number]}"
        status=$?
        if [ $status -ne 0 ]; then
            failed+=("study $name, process $((number + 1)) (status $status; 124: call it again with its lines in data/)")
            tail -n 15 "$work/$name-$((number + 1)).log"
        fi
    done
    if [ -f "$folder/lines.jsonl" ]; then
        cp "$folder/lines.jsonl" "$out/$name.jsonl"
        "$python" -m plrc study "$file" --out "$folder" --show | tee "$out/$name.txt"
    fi
    cat "$work/$name"-*.log >"$out/$name.log"
}

checks() {
    local device=cuda
    if [ "$small" = 1 ]; then
        device=cpu
    fi
    step "tests of the device" 200 env DEVICE=$device "$python" -m pytest -n0 -q -W default -p no:cacheprovider \
        tests/objectives/test_affinity.py::test_cuda_equals_the_dense_form_in_float64 $here/test_device.py \
        --junit-xml "$out/tests.xml"
    if [ "$small" = 1 ]; then
        local tiny=(--backbone resnet18 --size 64 --batch 4 --repeats 1 --device cpu)
        bench objectives 100 objectives --points 16 --references 16 --repeats 1 --device cpu
        bench step-4 100 step "${tiny[@]}"
        bench loader 60 loader --images 4 --batch 4 --repeats 1
        bench epoch 100 epoch --steps 1 --workers 0 "${tiny[@]}"
    else
        bench objectives 60 objectives --device cuda
        for batch in 64 256; do
            bench "step-$batch" 60 step --batch "$batch" --backbone resnet50 --size 224 --device cuda
        done
        bench loader 40 loader
        bench epoch 90 epoch --batch 256 --backbone resnet50 --size 224 --device cuda
    fi
}

if compgen -G "$here/wheels/*.whl" >/dev/null; then
    step "install the wheels" 60 "$python" -m pip install --quiet --no-index --no-deps --target "$work/site" "$here"/wheels/*.whl
fi
case $call in
    checks) checks ;;
    scenes | aquarium) study "$call" ;;
    *)
        echo "usage: benchmarks/gpu/run.sh checks|scenes|aquarium" >&2
        exit 2
        ;;
esac
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed:'
    printf ' %s;' "${failed[@]}"
    echo
    exit 1
fi
echo "all done; results in $out"
