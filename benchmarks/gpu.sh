#!/usr/bin/env bash
# What is due on a machine with a GPU: twelve minutes in all, the most valuable part first.
#
#     OUT=results benchmarks/gpu.sh      # QUICK=1 tries every part with tiny numbers, on any machine, in three minutes
#
# A search with three objectives through Ray to a front of two or more, and once more with one trial at a time where that
# fails; graphs against phases as they come, and several students at once; the laws of energy; then the built-in weights
# are trained on for the time that is left, on the pictures in DATA. Each part has its own limit in seconds, its log
# and figures lie in OUT as they come, and the next part runs all the same. Nothing is downloaded: what the machine
# lacks is set up by .gpu/setup.sh, where there is one.
set -uo pipefail
root=$PWD out=${OUT:-gpu-out} quick=${QUICK:-} data=${DATA:-builtin} judged=builtin
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
if [ -e .gpu/setup.sh ]; then
    # shellcheck source=/dev/null
    . .gpu/setup.sh
fi
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
python=$(command -v "${PYTHON:-$python}") || exit 1
case $python in /*) ;; *) python=$root/$python ;; esac
export python data PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# shellcheck disable=SC2329 # the parts call it
nas_kd() { "$python" -c 'from nas_kd.cli.main import main; main()' "$@"; }
export -f nas_kd
total_s=${TOTAL_S:-$([ -n "$quick" ] && echo 300 || echo 720)}
left_s() { echo $((total_s - SECONDS)); }
failed=0 code=0
run() { # name, seconds at most, command: its end is told and the next part runs all the same
    local name=$1 limit_s=$2
    code=124
    shift 2
    [ "$limit_s" -le "$(left_s)" ] || limit_s=$(left_s)
    [ "$limit_s" -ge 0 ] || limit_s=0
    echo "== $name: $limit_s s at most"
    if [ "$limit_s" -ge 1 ]; then
        timeout --kill-after=10 "$limit_s" "$@" 2>&1 | tee "$out/$name.log"
        code=${PIPESTATUS[0]}
    fi
    echo "== $name: exit code $code, $(left_s) s left"
    [ "$code" -eq 0 ] || failed=1
}

# Without a GPU there is no meter and there are no graphs: the same parts with what a CPU has.
objectives=bd_rate,flops,energy sharing='--workers 4' alone='--workers 1 --trials-per-gpu 1' marked=gpu named=gpu
if ! command -v nvidia-smi >/dev/null; then
    objectives=rd_cost,flops,params sharing='--workers 1' alone='--workers 1' marked='not gpu' named=cpu
fi
work="--budget 6 --steps 1000 --set crops=512 --set batch=8"
[ -z "$quick" ] || work="--budget 3 --steps 2 --set crops=16 --set batch=1 --set crop_size=64"
if [ -n "$quick" ]; then # one small picture: the card's real files are coded on the CPU
    judged=$out/judged
    mkdir -p "$judged"
    "$python" -c 'import sys; from PIL import Image
Image.merge("RGB", [Image.effect_noise((128, 128), s) for s in (20, 40, 60)]).save(sys.argv[1])' "$judged/a.png"
fi
search="--space demo --teacher mini --objectives $objectives $work --data $data --eval-data $judged"
front='import json, sys; sys.exit(len(json.load(open(sys.argv[1]))["front"]) < 2)'
figures='import json, sys
found = json.load(open(sys.argv[1]))
for key in ("eager_ms", "graph_ms", "streams_gain", "crops_per_s", "trials_per_hour_gain"):
    print(key, found[key])'

run machine 40 bash -c 'nvidia-smi; nas_kd doctor || true'
run search 270 bash -c "cd '$out' && nas_kd search --name gpu $sharing $search"
run front 40 bash -c "cd '$out' && nas_kd front gpu --json > front.json && '$python' -c '$front' front.json"
if [ "$code" -ne 0 ]; then
    run search-alone 150 bash -c "cd '$out' && nas_kd search --name alone $alone $search"
fi
run graphs-tests 60 "$python" -m pytest -q -p no:cacheprovider -m "$marked" -k "on_a_$named" tests/distillation/test_graphs.py
run graphs 130 "$python" benchmarks/distill.py ${quick:+--quick} --parts graphs,packed --data "$data" --out "$out/graphs.json"
run figures 10 "$python" -c "$figures" "$out/graphs.json"
run laws 120 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/measurement/test_energy_gpu.py
# The card's curves, real files on the CPU, take the last part of it.
train_s=$(($(left_s) - 100))
[ "$train_s" -ge 1 ] || train_s=1
crops="--batch 8"
[ -z "$quick" ] || train_s=5 crops="--batch 1 --size 64 --lr 1e-5"
# shellcheck disable=SC2086 # words
run train "$(left_s)" "$python" scripts/train_family.py --further nas_kd/assets/teachers/mini --data "$data" $crops \
    --eval-data "$judged" --seconds "$train_s" --out "$out/mini"
exit $failed
