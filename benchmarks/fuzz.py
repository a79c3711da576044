"""Decode damaged and forged files, and count what goes wrong.

    python benchmarks/fuzz.py --files 100000 --seconds 900 --out fuzz.json     # again: it goes on

Files of small students and of the built-in teacher are mutated (bits, bytes, lengths, header fields, whole
strings); most get a checksum that holds, and some also the checksum of whatever latents they now decode to, so that
the picture is computed too. A worker process decodes them within limits on memory and time; when it dies, another goes
on behind the file that killed it. Anything but a picture or a BitstreamError counts as a crash.

The last line is JSON: files, crashes, hangs, over_memory, refused, decoded.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import select
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

from harness import MINI, add_out, finish, hardware, options

MEMORY_MIB = 1024
"""What a worker may take beyond what it has when its students are loaded."""

HANG_S = 30
FIXED_BYTES = 31
INTERESTING = (0, 1, 2, 63, 64, 65, 255, 1024, 2**16, 2**26, 2**31 - 1, 2**31, 2**32 - 1)


def students() -> list:
    """Two tiny untrained students and the built-in teacher, ready to code."""
    import torch

    from nas_kd.codec.arch import Arch, Transform
    from nas_kd.codec.checkpoint import load_student, ready
    from nas_kd.codec.student import Student

    side = Transform("trunk4", (0, 4, 4), kernel=3)
    made = []
    for entropy in ("mean-scale", "checkerboard"):
        torch.manual_seed(0)
        arch = Arch(side, side, M=6, hyper=4, entropy=entropy)
        student = Student(arch, (0.0035, 0.013, 0.0483))
        with torch.no_grad():
            student.g_a.head.weight *= 50  # latents worth coding
        made.append(ready(student))
    return [*made, load_student(MINI)]


def seeds_of(student: object) -> list[bytes]:
    """Valid files to start from."""
    import numpy as np

    from nas_kd.codec.bitstream import analyse, write

    rng = np.random.default_rng(0)
    sizes = ((1, 1), (64, 64), (70, 130))
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    smooth = np.add.outer(np.arange(64), np.arange(90)).astype(np.uint8)
    analysed = [analyse(student, p) for p in (*pictures, smooth)]
    return [
        write(student, p, level, v) for p in analysed for level, v in ((1, 3), (2.5, 3), (1, 2))
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four random changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change(out, rng)
    return bytes(out)


def _change(out: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(out)) if out else 0
    kind = rng.randrange(8)
    if kind == 0 and out:
        out[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and out:
        out[at] = rng.randrange(256)
    elif kind == 2:
        del out[at:]
    elif kind == 3:
        out[at:at] = rng.randbytes(rng.randrange(1, 40))
    elif kind == 4:
        del out[at : at + rng.randrange(1, 40)]
    elif kind == 5:
        n = min(rng.randrange(1, 400), max(0, len(out) - at - 4))
        out[at : at + n] = bytes([rng.choice((0, 255, 128, 1))]) * n
    elif kind == 6 and len(out) > FIXED_BYTES + 12:
        field = rng.choice((13, 17, 21, 27, 31, 35, 39))
        struct.pack_into("<I", out, field, rng.choice((*INTERESTING, rng.getrandbits(32))))
    elif kind == 7 and len(out) > FIXED_BYTES + 12:
        # A length given away to its neighbour: the total still holds.
        one, other = struct.unpack_from("<II", out, FIXED_BYTES)
        moved = rng.randrange(one + 1) if one < 2**20 else 0
        struct.pack_into("<II", out, FIXED_BYTES, one - moved, (other + moved) % 2**32)


def sealed(data: bytes) -> bytes:
    """With the checksum that its bytes ask for."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def forged(student: object, data: bytes) -> bytes:
    """With the checksum of the latents that it decodes to, where it decodes at all."""
    from nas_kd.codec import bitstream

    try:
        header = bitstream._parse(data)
        strings = bitstream._strings(header, data)
        z_shape = bitstream._cells(header.height, header.width)
        if z_shape[0] * z_shape[1] > 64 or header.y_parts != student.y_parts:
            return data
        coder = student.coder
        quiet = bitstream.QUIET_OF[header.version]
        symbols = coder.decode(strings, z_shape, header.level, bitstream.TILE, quiet).checksum
    except (bitstream.BitstreamError, ValueError, OverflowError):
        return data  # what decode() refuses before it gets that far
    changed = bytearray(data)
    struct.pack_into("<I", changed, 27, symbols)
    return sealed(bytes(changed))


def work(first: int, last: int, seed: int) -> None:
    """Decode files first to last; a line per file: ``index outcome seconds``."""
    from nas_kd.codec.bitstream import decode
    from nas_kd.errors import BitstreamError

    torch_threads()
    all_students = students()
    starts = [seeds_of(student) for student in all_students]
    limit_memory()
    print("ready", flush=True)
    for index in range(first, last):
        rng = random.Random(f"{seed}/{index}")
        which = rng.choices((0, 1, 2), (48, 48, 4))[0]
        student = all_students[which]
        data = mutate(rng.choice(starts[which]), rng)
        if rng.random() < 0.9 and len(data) > 8:
            data = sealed(data)
            if rng.random() < 0.4:
                data = forged(student, data)
        print(index, "start", 0, flush=True)
        began = time.monotonic()
        try:
            decode(student, data)
            outcome = "decoded"
        except BitstreamError:
            outcome = "refused"
        except MemoryError:
            outcome = "over_memory"
        except Exception as error:  # every other kind is what we look for
            memory = "memory" in str(error).lower()
            outcome = "over_memory" if memory else "crashes"
            print(f"file {index}: {type(error).__name__}: {error}", file=sys.stderr)
        print(index, outcome, time.monotonic() - began, flush=True)


def torch_threads() -> None:
    import torch

    torch.set_num_threads(1)


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run(files: int, seed: int, first: int, until_s: float) -> dict[str, float]:
    counts = {"crashes": 0, "hangs": 0, "over_memory": 0, "refused": 0, "decoded": 0}
    done, slowest_s = first, 0.0
    while done < first + files and time.monotonic() < until_s:
        command = [sys.executable, __file__, "--worker", f"{done}:{first + files}:{seed}"]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)
        done, outcome, worst_s = watch(worker, done, counts, until_s)
        slowest_s = max(slowest_s, worst_s)
        if outcome:
            counts[outcome] += 1
            print(f"file {done}: {outcome}", file=sys.stderr)
            done += 1
    return {"files": done - first, **counts, "slowest_s": round(slowest_s, 3)}


def watch(
    worker: subprocess.Popen, done: int, counts: dict[str, int], until_s: float
) -> tuple[int, str, float]:
    """Count a worker's lines until it ends; where it stopped, and why if not by itself."""
    slowest_s = 0.0
    waited_s = 600  # until torch is loaded, however busy the machine
    while True:
        if not select.select([worker.stdout], [], [], waited_s)[0]:
            worker.kill()
            worker.wait()
            return done, "hangs", slowest_s
        line = worker.stdout.readline()
        if not line:
            code = worker.wait()
            return done, "crashes" if code else "", slowest_s
        if line.strip() == "ready":
            waited_s = HANG_S
            continue
        index, outcome, seconds = line.split()
        if outcome != "start":
            counts[outcome] += 1
            slowest_s = max(slowest_s, float(seconds))
            done = int(index) + 1
            if time.monotonic() > until_s:
                worker.kill()
                worker.wait()
                return done, "", slowest_s


def before(path: Path | None, seed: int, version: int) -> dict:
    """What earlier runs counted into a file, which this one goes on from."""
    if path is None or not path.is_file():
        return {}
    found = json.loads(path.read_text())
    if (found["seed"], found["format_version"]) != (seed, version):
        raise SystemExit(
            f"{path}: is of seed {found['seed']} and format {found['format_version']}, not {seed} and {version}; "
            "give another --out"
        )
    return found


def together(earlier: dict, now: dict) -> dict:
    """Counts and seconds of both, the slowest file of either."""
    summed = {k: round(v + earlier.get(k, 0), 1) for k, v in now.items() if k != "slowest_s"}
    return summed | {"slowest_s": max(now["slowest_s"], earlier.get("slowest_s", 0.0))}


def main() -> None:
    from nas_kd.codec.bitstream import VERSION

    parser = options(__doc__, quick="500 files")
    add_out(parser, "fuzz")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(*(int(n) for n in args.worker.split(":")))
    began = time.monotonic()
    earlier = before(args.out, args.seed, VERSION)
    files = (500 if args.quick else args.files) - earlier.get("files", 0)
    first = args.first + earlier.get("files", 0)
    now = run(max(files, 0), args.seed, first, began + args.seconds)
    now["wall_s"] = round(time.monotonic() - began, 1)
    result = together(earlier, now) | {
        "seed": args.seed,
        "first": args.first,
        "format_version": VERSION,
        "memory_limit_mib": MEMORY_MIB,
    }
    finish(result | hardware(), args.out)
    return None


if __name__ == "__main__":
    main()
