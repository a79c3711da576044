#!/usr/bin/env bash
# All that is due on a machine with a GPU: tests, energy, speed, and further training of the built-in teacher.
#
#     OUT=results bash benchmarks/gpu.sh [tests] [energy] [speed] [train]     # all four unless some are named
#
# Wheels of what the machine lacks lie in .whl/ ; nothing is downloaded. Each part's log and figures land in $OUT.
set -uo pipefail
out=${OUT:-gpu-out}
mkdir -p "$out"
parts=${*:-tests energy speed train}
python=${PYTHON:-python3}
if compgen -G '.whl/*.whl' >/dev/null; then
    site=${TMPDIR:-/tmp}/nas-kd-site
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" .whl/*.whl || exit 1
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
nas_kd() { "$python" -c 'from nas_kd.cli.main import main; main()' "$@"; }
failed=0
run() { # name, seconds, command: its end is reported and the next part runs all the same
    local name=$1 seconds=$2
    shift 2
    echo "== $name"
    timeout "$seconds" "$@" 2>&1 | tee "$out/$name.log"
    local code=${PIPESTATUS[0]}
    echo "== $name: exit code $code"
    [ "$code" -eq 0 ] || failed=1
}
export -f nas_kd
export python
wanted() { [[ " $parts " == *" $1 "* ]]; }

run machine 120 bash -c 'nvidia-smi; nas_kd doctor'
wanted tests && run tests "${TESTS_S:-300}" "$python" -m pytest -q -m gpu -p no:cacheprovider
wanted energy && run energy "${ENERGY_S:-300}" "$python" benchmarks/energy.py
wanted speed && run speed 600 bash -c 'nas_kd measure nas_kd/assets/teachers/mini --quick --json'
wanted speed && run distill "${DISTILL_S:-1200}" "$python" benchmarks/distill.py ${QUICK:+--quick} --out "$out/distill.json"
wanted train && run train "${TRAIN_S:-1200}" "$python" benchmarks/train_mini.py --out "$out/mini" --steps "${STEPS:-20000}"
exit $failed
