"""What `nas-kd compress --effort` brings and takes: bits and quality of real strings, and processor time, by effort.

    python benchmarks/effort.py --quick
    python benchmarks/effort.py --data DIR --pictures 6 --efforts 1,2,3,4,5,6,7 --out

The codec is the built-in ``mini``, or another student's folder. Every picture, or its middle, is coded at every level
with each effort and decoded; bits are those of the strings. R-D cost: mean logarithm of R + lambda 255^2 D over
pictures and levels, against effort 0, in per cent (lower is better). BD-rate: of the mean curves, over the PSNR that
both reach. Seconds are of one thread's processor time for each megapixel, encoding as a whole.

The last line is JSON: a row for each effort.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import MINI, add_out, finish, hardware, options, said

from nas_kd.codec.bitstream import decode, info
from nas_kd.codec.checkpoint import load_student
from nas_kd.codec.iterative_encoding import STEPS, encode_with_effort
from nas_kd.data.images import open_images
from nas_kd.data.metrics import psnr_db
from nas_kd.evaluation.bd_rate import RDCurve, bd_rate


def middle(image: np.ndarray, side: int) -> np.ndarray:
    """The square in the middle; the whole picture for side 0."""
    if not side:
        return image
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return image[max(0, top) : max(0, top) + side, max(0, left) : max(0, left) + side]


def coded(student, image: np.ndarray, level: int, effort: int) -> tuple[float, float, float]:
    """Bits per pixel of the strings, PSNR, processor seconds."""
    started = time.process_time()
    data = encode_with_effort(student, image, level, effort)
    seconds, said_of = time.process_time() - started, info(data)
    bits = 8 * (said_of["y_bytes"] + said_of["z_bytes"])
    return bits / image[..., 0].size, psnr_db(decode(student, data), image), seconds


def log_costs(points: np.ndarray, lmbdas: list[float]) -> np.ndarray:
    """log(R + lambda 255^2 D) by level and picture, of points [levels, pictures, 3]."""
    error = 10 ** (-points[..., 1] / 10)
    return np.log(points[..., 0] + np.array(lmbdas)[:, None] * 255**2 * error)


def curve_of(points: np.ndarray) -> RDCurve:
    bpp, psnr = points[..., 0].mean(1), points[..., 1].mean(1)
    return RDCurve(tuple(map(float, bpp)), tuple(map(float, psnr)))


def row_of(effort: int, points: np.ndarray, plain: np.ndarray, lmbdas, megapixels) -> dict:
    """One effort against none."""
    gain = log_costs(points, lmbdas) - log_costs(plain, lmbdas)
    curves = curve_of(plain), curve_of(points)
    shared = max(min(c.psnr_db) for c in curves), min(max(c.psnr_db) for c in curves)
    rate = bd_rate(*curves, shared)
    return {
        "effort": effort,
        "steps": STEPS[effort],
        "rd_cost_percent": round(100 * float(gain.mean()), 2),
        "rd_cost_percent_by_level": [round(100 * float(g), 2) for g in gain.mean(1)],
        "bd_rate_percent": None if rate.value is None else round(rate.value, 2),
        "bpp": [round(b, 4) for b in curve_of(points).bpp],
        "psnr_db": [round(q, 3) for q in curve_of(points).psnr_db],
        "cpu_s_per_mpx": round(float((points[..., 2] / megapixels).mean()), 2),
    }


def parsed():
    parser = options(__doc__)
    add_out(parser, "effort")
    parser.add_argument("--student", type=Path, default=MINI)
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--pictures", type=int, default=6, help="evenly from the set")
    parser.add_argument("--middle", type=int, default=0, help="px of their middle; 0: whole")
    parser.add_argument("--efforts", default="1,2,3,4,5,6")
    parser.add_argument("--levels", help="comma-separated [default: all]")
    args = parser.parse_args()
    if args.quick:
        args.pictures, args.middle, args.efforts, args.levels = 1, 64, "1", "1,2,3,4"
    return args


def main() -> None:
    args = parsed()
    torch.set_num_threads(1)
    student, images = load_student(args.student), open_images(args.data, "eval")
    chosen = np.linspace(0, len(images) - 1, min(args.pictures, len(images))).astype(int)
    pictures = [middle(images.images[i], args.middle) for i in chosen]
    levels = [int(n) for n in args.levels.split(",")] if args.levels else None
    levels = levels or list(range(1, student.levels + 1))
    lmbdas = [student.lmbdas[level - 1] for level in levels]
    megapixels = np.array([image[..., 0].size / 1e6 for image in pictures])
    rows: list[dict[str, Any]] = []
    plain = None
    for effort in (0, *(int(n) for n in args.efforts.split(","))):
        points = np.array([[coded(student, i, n, effort) for i in pictures] for n in levels])
        plain = points if plain is None else plain
        rows.append(row_of(effort, points, plain, lmbdas, megapixels))
        print(json.dumps(rows[-1]), flush=True)
    about = {"benchmark": "effort", "settings": said(args), "levels": levels}
    about |= {"pictures": [images.names[i] for i in chosen]} | hardware()
    finish(about | {"efforts": rows}, args.out)


if __name__ == "__main__":
    main()
