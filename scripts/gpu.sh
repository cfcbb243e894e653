#!/usr/bin/env bash
# What needs a GPU, in a slice of minutes that the next one takes up: tests, speed, then cells of the table cifar10-w32.
#
#     scripts/gpu.sh DATA OUT [SECONDS] [cuda|cpu]
#
# DATA holds cifar-10-batches-py, or folders of its layout that are not the archive: then UNOFFICIAL names the one to train
# on (cifar-10-batches-py-jpeg75), and UNOFFICIAL_TEST that of the test images, if it is another. OUT gets the results, and
# in OUT/state what unfinished cells need: give the next slice the same OUT. With cpu all of it is of toy size, to try the
# script. PYTHON is the interpreter (python3), WORKERS how many processes load images (8), TMPDIR where cells work (/tmp).
set -uo pipefail
stop() { echo "scripts/gpu.sh: $*" >&2; exit 2; }
[ $# -ge 2 ] && [ $# -le 4 ] || stop "usage: scripts/gpu.sh DATA OUT [SECONDS] [cuda|cpu]"
[[ ${3:-500} =~ ^[0-9]+$ ]] || stop "SECONDS must be a whole number, got $3."
[[ ${4:-cuda} =~ ^(cuda|cpu)$ ]] || stop "the device must be cuda or cpu, got $4."
mkdir -p "$2" || stop "cannot write to $2."
DATA=$(realpath -e "$1") && OUT=$(realpath "$2") && PYTHON=$(command -v "${PYTHON:-python3}") || stop "no such DATA or PYTHON."
[[ $PYTHON = /* ]] || PYTHON=$PWD/$PYTHON
TIME=${3:-500} DEVICE=${4:-cuda}
END=$((SECONDS + TIME)) HALF=$((SECONDS + TIME / 2))
cd "$(dirname "$0")/.." || exit
export OMP_WAIT_POLICY=PASSIVE PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD
if [ -z "${UNOFFICIAL:-}" ] && [ ! -d "$DATA/cifar-10-batches-py" ]; then
  UNOFFICIAL=cifar-10-batches-py-jpeg75 UNOFFICIAL_TEST=${UNOFFICIAL_TEST:-cifar-10-batches-py-partial}
  echo "== $DATA does not have the archive: training on $UNOFFICIAL, testing on $UNOFFICIAL_TEST"
fi
data=(--data-dir "$DATA")
[ -z "${UNOFFICIAL:-}" ] || data+=(--unofficial-data "$UNOFFICIAL")
[ -z "${UNOFFICIAL_TEST:-}" ] || data+=(--unofficial-test "$UNOFFICIAL_TEST")
[ -d "$DATA/${UNOFFICIAL:-cifar-10-batches-py}" ] || stop "$DATA has no ${UNOFFICIAL:-cifar-10-batches-py}; see UNOFFICIAL."
"$PYTHON" -c 'import sys, torch; sys.exit(sys.argv[1] == "cuda" and not torch.cuda.is_available())' "$DEVICE" ||
  stop "$PYTHON has no torch with a device $DEVICE."

# Runs a command in the first half of a slice, the other half being the cells'; its output and exit status are kept in OUT.
# One that fails, or that the end of the half stops, gets a second try, in the next slice, and no third.
once() {
  local name=$1 tried
  shift
  tried=$(cat "$OUT/$name.rc" 2>/dev/null)
  if [[ $tried =~ (^|[[:space:]])0$ ]]; then return; fi
  [ "$(wc -w <<<"$tried")" -lt 2 ] || { echo "== $name: exit status $(tail -n 1 <<<"$tried") twice; to try again: rm $OUT/$name.rc"; return; }
  [ $((HALF - SECONDS)) -gt 2 ] || { echo "== $name: no time left, in the next slice"; return; }
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
  data+=(--workers "${WORKERS:-8}")
else
  once tests "$PYTHON" -m pytest -q -n0 tests/test_devices.py -k "PGD or float32" -p no:cacheprovider
  once training_step "$PYTHON" -m benchmarks.speed.training_step --no-peers --width 2 --batch 4 --rounds 1 \
    --out "$OUT/training_step.json"
  once epoch "$PYTHON" -m benchmarks.speed.epoch --width 2 --batch 4 --images 8 --out "$OUT/epoch.json"
  data+=(--archs convnet24 --teacher-arch convnet24 --methods madry sip-s --seeds 0 --no-compile)
  data+=(--epochs 1 --steps 1 --validation-share 0.02 --images 8 --test-batch-size 8 --version rand)
fi

[ $((END - SECONDS)) -gt 30 ] || { echo "== cells: no time left, in the next slice"; exit 0; }
echo "== cells, $((END - SECONDS)) s left"
"$PYTHON" -m benchmarks.paper table --preset cifar10-w32 "${data[@]}" --accelerator "$DEVICE" \
  --time-limit $((END - SECONDS - 20)) --state "$OUT/state" --results "$OUT/w32" \
  --work "${TMPDIR:-/tmp}/w32-$DEVICE-$(id -u)-$(cksum <<<"$OUT" | cut -d ' ' -f 1)" 2>&1 | tail -n 20
