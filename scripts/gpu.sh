#!/usr/bin/env bash
# What needs a GPU, in a slice of minutes that the next one takes up: tests, speed, then cells of the table cifar10-w32.
#
#     scripts/gpu.sh DATA OUT [SECONDS] [cuda|cpu]
#
# DATA holds cifar-10-batches-py, or folders of its layout that are not the archive: UNOFFICIAL names the one to train on,
# UNOFFICIAL_TEST that of the test images. OUT gets the results, and in OUT/state what unfinished cells need: give the next
# slice the same OUT. With cpu all of it is of toy size, to try the script.
set -uo pipefail
cd "$(dirname "$0")/.."
DATA=$1 OUT=$2 TIME=${3:-500} DEVICE=${4:-cuda}
END=$((SECONDS + TIME)) HALF=$((SECONDS + TIME / 2))
export OMP_WAIT_POLICY=PASSIVE PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD
mkdir -p "$OUT"
PYTHON=${PYTHON:-python3}

# Runs a command in the first half of a slice, the other half being the cells'; its output and exit status are kept in OUT.
# One that the end of the half stops gets a second try, in the next slice, and no third: give it a longer slice.
once() {
  local name=$1; shift
  [[ "$(cat "$OUT/$name.rc" 2>/dev/null)" =~ ^(124|137)?$ ]] && [ $((HALF - SECONDS)) -gt 2 ] || return
  echo "== $name, $((HALF - SECONDS)) s left"
  timeout -k 5 $((HALF - SECONDS)) "$@" >"$OUT/$name.log" 2>&1
  echo $? | tee -a "$OUT/$name.rc"
  tail -n 3 "$OUT/$name.log"
}

if [ "$DEVICE" = cuda ]; then
  once tests "$PYTHON" -m pytest -q -m gpu tests/test_devices.py -p no:cacheprovider --timeout=120
  for batch in 64 512; do
    once "training_step_$batch" "$PYTHON" -m benchmarks.speed.training_step --device cuda --bf16 --compile --no-peers \
      --width 64 --batch $batch --out "$OUT/training_step_$batch.json"
    once "epoch_$batch" "$PYTHON" -m benchmarks.speed.epoch --device cuda --batch $batch --out "$OUT/epoch_$batch.json"
  done
  once wrapper_overhead "$PYTHON" -m benchmarks.speed.wrapper_overhead --device cuda --out "$OUT/wrapper_overhead.json"
else
  once tests "$PYTHON" -m pytest -q -n0 tests/test_devices.py -k "PGD or float32" -p no:cacheprovider
  once training_step "$PYTHON" -m benchmarks.speed.training_step --no-peers --width 2 --batch 4 --rounds 1 \
    --out "$OUT/training_step.json"
  once epoch "$PYTHON" -m benchmarks.speed.epoch --width 2 --batch 4 --images 8 --out "$OUT/epoch.json"
fi

data=(--data-dir "$DATA")
[ -d "$DATA/cifar-10-batches-py" ] || data+=(--unofficial-data "${UNOFFICIAL:-cifar-10-batches-py-jpeg75}"
  --unofficial-test "${UNOFFICIAL_TEST:-cifar-10-batches-py-partial}")
if [ "$DEVICE" = cuda ]; then
  data+=(--workers "${WORKERS:-8}")
else
  data+=(--archs convnet24 --teacher-arch convnet24 --methods madry sip-s --seeds 0 --no-compile)
  data+=(--epochs 1 --steps 1 --validation-share 0.02 --images 8 --test-batch-size 8 --version rand)
fi
[ $((END - SECONDS)) -gt 30 ] || exit 0
echo "== cells, $((END - SECONDS)) s left"
"$PYTHON" -m benchmarks.paper table --preset cifar10-w32 "${data[@]}" --accelerator "$DEVICE" \
  --time-limit $((END - SECONDS - 20)) --state "$OUT/state" --results "$OUT/w32" --work "${TMPDIR:-/tmp}/w32-$DEVICE" 2>&1 | tail -n 20
