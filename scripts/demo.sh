#!/usr/bin/env bash
# The main job on what is built in: search, front, report, export, and a picture there and back.
set -euo pipefail
out=${1:-demo-out}
mkdir -p "$out"
nas-kd search --space demo --teacher mini --name demo --budget 16 --steps 25 --objectives bd_rate,flops --set lr=2e-4 --set crops=64
nas-kd front demo --plot "$out/front.png"
nas-kd report demo --out "$out/report.html"
nas-kd export demo --out "$out/students" | tee "$out/students.txt"
student=$(head -n 1 "$out/students.txt") # the front comes in the order of its BD-rates: the best first
python -c "
import sys; from pathlib import Path; from nas_kd.data.images import photograph
Path(sys.argv[1]).write_bytes(photograph('scikit-image/chelsea.png'))" "$out/photograph.png"
nas-kd compress "$out/photograph.png" "$out/photograph.nkd" --student "$student" --level 3 --overwrite
nas-kd decompress "$out/photograph.nkd" "$out/restored.png" --student "$student" --overwrite
echo "look at $out/front.png, $out/report.html and $out/restored.png"
