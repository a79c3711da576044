"""What students cost to use: encode and decode time and peak memory, beside classical codecs and the teacher.

    python benchmarks/codec.py --students FOLDER       # as `nas-kd export` writes it; built-in `mini` beside

Files are real: everything from pixels to bytes and back, header and checks included, on one thread. Rounds are
interleaved, medians are reported, each codec in turn within a round. Peak memory is that of a process of its own,
beyond what it holds with the codec loaded. The teacher is CompressAI's cheng2020-anchor with random weights: its
time depends on its architecture (quality 3, the smaller one, 128 channels), not on what was learned; it runs once, and
not on the large picture. A classical codec is set to the quality whose PSNR is nearest to the first student's.

The last line is JSON: decode_speedup_vs_teacher (of the slowest student), entropy_coding_share (the largest, at
level 3), peak_mib_24mp (the largest, encoding or decoding); of the exported students where there are any, else
of ``mini``.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import MINI, add_out, hardware, keep, options
from PIL import Image

SMALL, LARGE = (512, 768), (4000, 6000)
LEVEL = 3
Codec = tuple[Callable[[np.ndarray], bytes], Callable[[bytes], np.ndarray]]


def picture(data: str, shape: tuple[int, int]) -> np.ndarray:
    """Photographs side by side, cut to a shape."""
    from nas_kd.data.images import open_images

    images = open_images(data, "eval")
    rows, width = [], shape[1]
    heights = 0
    for n in range(10_000):
        image = images.images[n % min(len(images), 8)]
        strip = np.tile(image, (1, -(-width // image.shape[1]), 1))[:, :width]
        rows.append(np.roll(strip, 97 * n, axis=1))
        heights += len(strip)
        if heights >= shape[0]:
            break
    return np.ascontiguousarray(np.concatenate(rows)[: shape[0]])


def student_codec(folder: str) -> Codec:
    from nas_kd.codec.bitstream import decode, encode
    from nas_kd.codec.checkpoint import load_student

    student = load_student(folder)
    level = min(LEVEL, student.levels)
    return (lambda image: encode(student, image, level)), (lambda data: decode(student, data))


def classical_codec(name: str, options: dict[str, Any]) -> Codec:
    from nas_kd.evaluation.classical import CODECS

    def encode(image: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, CODECS[name].kind, **options)
        return buffer.getvalue()

    return encode, lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def make(spec: dict[str, Any]) -> Codec:
    if "folder" in spec:
        return student_codec(spec["folder"])
    return classical_codec(spec["classical"], spec["options"])


def nearest(name: str, image: np.ndarray, wanted_db: float) -> dict[str, Any]:
    """The options of a classical codec whose PSNR is nearest to ``wanted_db``."""
    from nas_kd.data.metrics import psnr_db
    from nas_kd.evaluation.classical import CODECS

    def far(options: dict[str, Any]) -> float:
        encode, decode = classical_codec(name, options)
        return abs(psnr_db(decode(encode(image)), image) - wanted_db)

    return min(CODECS[name].points, key=far)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def small_picture(specs: dict[str, dict[str, Any]], image: np.ndarray, rounds: int) -> dict:
    """bpp, PSNR and median times, codec by codec within each round."""
    from nas_kd.data.metrics import psnr_db

    codecs = {name: make(spec) for name, spec in specs.items()}
    seconds: dict[str, dict[str, list[float]]] = {n: {"encode": [], "decode": []} for n in codecs}
    found: dict[str, dict[str, Any]] = {}
    for _ in range(rounds + 1):
        for name, (encode, decode) in codecs.items():
            encode_s, data = timed(lambda e=encode: e(image))
            decode_s, restored = timed(lambda d=decode, b=data: d(b))
            seconds[name]["encode"].append(encode_s)
            seconds[name]["decode"].append(decode_s)
            bpp = 8 * len(data) / (image.shape[0] * image.shape[1])
            found[name] = {"bpp": bpp, "psnr_db": psnr_db(restored, image)}
    for name, times in seconds.items():
        for part, values in times.items():
            found[name][f"{part}_s"] = statistics.median(values[1:])
    return found


def entropy_share(folder: str, image: np.ndarray, rounds: int) -> dict[str, float]:
    """Entropy decoding (with exact arithmetic and z) beside the whole of decoding, interleaved."""
    from nas_kd.codec import bitstream
    from nas_kd.codec.checkpoint import load_student

    student = load_student(folder)
    shares = {}
    for level in range(1, student.levels + 1):
        data = bitstream.encode(student, image, level)
        header = bitstream._parse(data)
        strings, cells = bitstream._strings(header, data), bitstream._cells(*image.shape[:2])
        coding = lambda s=strings, c=cells, h=header: student.coder.decode(s, c, h.level, 16)  # noqa: E731
        pairs = [
            (timed(coding)[0], timed(lambda d=data: bitstream.decode(student, d))[0])
            for _ in range(rounds + 1)
        ]
        shares[str(level)] = statistics.median(part / whole for part, whole in pairs[1:])
    return shares


def teacher(image: np.ndarray) -> dict[str, float]:
    """CompressAI's cheng2020-anchor, its own entropy coding, one run."""
    from nas_kd.codec.compressai_light import CompressionModel  # noqa: F401  the light import goes first
    from nas_kd.data.images import to_tensor

    from compressai.zoo import cheng2020_anchor  # isort: skip

    torch.manual_seed(0)
    model = cheng2020_anchor(3, pretrained=False).eval()
    model.update()
    with torch.no_grad():
        encode_s, out = timed(lambda: model.compress(to_tensor(image)))
        decode_s, _ = timed(lambda: model.decompress(out["strings"], out["shape"]))
    return {"encode_s": encode_s, "decode_s": decode_s}


# --- peak memory, in a process of its own --------------------------------------------------------


def status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak_of(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Peak MiB beyond what is held before, seconds, result."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status_mib("VmRSS")
    seconds, result = timed(work)
    return status_mib("VmHWM") - before, seconds, result


def once(spec: dict[str, Any], data: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Peaks and times of one picture; the picture itself is held before and not counted."""
    from nas_kd.data.metrics import psnr_db

    encode, decode = make(spec)
    image = picture(data, shape)
    decode(encode(np.ascontiguousarray(image[:64, :64])))  # loads what is loaded late
    encode_mib, encode_s, coded = peak_of(lambda: encode(image))
    decode_mib, decode_s, restored = peak_of(lambda: decode(coded))
    return {
        "bpp": 8 * len(coded) / (shape[0] * shape[1]),
        "psnr_db": psnr_db(restored, image),
        "encode_s": encode_s,
        "decode_s": decode_s,
        "encode_peak_mib": encode_mib,
        "decode_peak_mib": decode_mib,
    }


def apart(spec: dict[str, Any], data: str, shape: tuple[int, int]) -> dict[str, Any]:
    asked = json.dumps([spec, data, shape])
    command = [sys.executable, __file__, "--once", asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def specs_of(folders: list[str], image: np.ndarray) -> dict[str, dict[str, Any]]:
    from nas_kd.data.metrics import psnr_db
    from nas_kd.evaluation.classical import CODECS, lacking

    specs: dict[str, dict[str, Any]] = {Path(f).name: {"folder": f} for f in folders}
    encode, decode = make(specs[next(iter(specs))])
    wanted_db = psnr_db(decode(encode(image)), image)
    for name in CODECS:
        if lacking(name) is None:
            specs[name] = {"classical": name, "options": nearest(name, image, wanted_db)}
    return specs


def summary(result: dict[str, Any]) -> dict[str, float | None]:
    students = [name for name, spec in result["codecs"].items() if "folder" in spec]
    own = [name for name in students if name != "mini"] or students
    slowest_s = max(result["768x512"][name]["decode_s"] for name in own)
    shares = [result["entropy_share_by_level"][name][str(LEVEL)] for name in own]
    large = [result["6000x4000"][name] for name in own if name in result["6000x4000"]]
    peaks = [row[f"{part}_peak_mib"] for row in large for part in ("encode", "decode")]
    return {
        "decode_speedup_vs_teacher": result["teacher"]["decode_s"] / slowest_s,
        "entropy_coding_share": max(shares),
        "peak_mib_24mp": max(peaks) if peaks else None,
    }


def main() -> None:
    parser = options(__doc__, quick="2 rounds, one codec on 24 Mpx")
    add_out(parser, "codec")
    parser.add_argument("--students", type=Path, help="folder of exported students")
    parser.add_argument("--data", default="builtin", help="builtin or a folder of pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.once:
        spec, data, shape = json.loads(args.once)
        print(json.dumps(once(spec, data, tuple(shape))))
        return
    rounds = 2 if args.quick else args.rounds
    exported = sorted(p.parent for p in args.students.glob("*/arch.json")) if args.students else []
    image = picture(args.data, SMALL)
    specs = specs_of([*(str(p.resolve()) for p in exported), str(MINI)], image)
    names = [
        {k: v if k != "folder" else Path(v).name for k, v in s.items()} for s in specs.values()
    ]
    result: dict[str, Any] = {"codecs": dict(zip(specs, names, strict=True)), "level": LEVEL}
    result["768x512"] = small_picture(specs, image, rounds)
    students = {name: spec["folder"] for name, spec in specs.items() if "folder" in spec}
    shares = {name: entropy_share(folder, image, rounds) for name, folder in students.items()}
    result["entropy_share_by_level"] = shares
    result["teacher"] = teacher(image) | {"name": "cheng2020-anchor 3, random weights, one run"}
    print(json.dumps(result, indent=1), flush=True)
    for name, spec in specs.items():
        result["768x512"][name] |= {
            k: v for k, v in apart(spec, args.data, SMALL).items() if k.endswith("_mib")
        }
    large = dict(list(specs.items())[:1]) if args.quick else specs
    result["6000x4000"] = {name: apart(spec, args.data, LARGE) for name, spec in large.items()}
    result |= {
        "seed": 0,
        "data": "builtin" if args.data == "builtin" else Path(args.data).name,
        "threads": 1,
        "pillow": Image.__version__,
    }
    result |= hardware() | summary(result)
    if args.out:
        keep(args.out, result)
    print(json.dumps(summary(result)))


if __name__ == "__main__":
    main()
