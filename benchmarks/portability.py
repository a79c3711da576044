"""Write files in one setting, decode them in others, and count those that come out otherwise.

    python benchmarks/portability.py --data DIR --pictures 100

A second set of the same pictures is analysed by ONNX Runtime in place of PyTorch (``nas-kd export --onnx``), coded by
our coder, and read in all settings too: that a file decodes to its writer's latents does not depend on what library
computed them. ``other_files`` says how many of these differ from those that PyTorch wrote (its float32 is another's),
``x_hat_off`` by how much ONNX Runtime's pictures of the decoded latents are off PyTorch's at most, in [0, 1].

The settings: one and two threads, oneDNN on and off, and the instruction sets that PyTorch, oneDNN, MKL and OpenBLAS
are told to use, which is as near to another machine as one machine gets. Each reader is a process of its own and makes
the coding tables itself. ``other_symbols``: files whose symbols are not the writer's, which is never to happen;
``differ``: files whose latents are not bit for bit the writer's, which for students that predict steps may happen;
``garbled``: those among them that differ by more than rounding.

The last line is JSON: files, onnxruntime (files, other_files, x_hat_off), and per setting other_symbols, differ and
garbled, of both sets, and differ by student.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from harness import MINI, add_out, finish, hardware, options

CROP_PX = 256
LEVELS = (1, 2.5, 4, 6)
NEWER_CPU = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
OLD_CPU = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "OPENBLAS_CORETYPE": "Nehalem",  # NumPy's products
}
SETTINGS: dict[str, tuple[int, bool, dict[str, str]]] = {
    "same": (1, True, {}),
    "threads_2": (2, True, {}),
    "no_onednn": (1, False, {}),
    "no_onednn_threads_2": (2, False, {}),
    "avx2": (1, True, NEWER_CPU),
    "sse4": (1, True, OLD_CPU),
    "sse4_no_onednn": (1, False, OLD_CPU),
}


def students() -> dict[str, object]:
    """The built-in teacher, which codes in two passes, and untrained students of the other entropy models."""
    from nas_kd.codec.arch import Arch, Transform
    from nas_kd.codec.checkpoint import load_student, ready
    from nas_kd.codec.student import Student

    side = Transform("unshuffle4", (0, 16, 24), kernel=3)
    made: dict[str, object] = {"mini": load_student(MINI)}
    for entropy in ("scale", "mean-scale", "checkerboard"):
        torch.manual_seed(0)
        student = Student(Arch(side, side, M=64, hyper=48, entropy=entropy))
        with torch.no_grad():
            # Untrained scales hardly move; these do.
            student.entropy_parameters.scales.weight *= 8
            student.g_a.head.weight *= 30
        made[entropy] = ready(student)
    return made


def stored(folder: Path) -> dict[str, object]:
    """The writer's students, as a reader gets them."""
    from nas_kd.codec.checkpoint import load_student

    return {path.name: load_student(path) for path in (folder / "students").iterdir()}


def crops(data: str, count: int) -> list[np.ndarray]:
    from nas_kd.data.images import crop_pool, open_images

    pool = crop_pool(open_images(data, "eval"), count, CROP_PX, seed=0)
    return [picture.transpose(1, 2, 0) for picture in pool]


def session(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


@torch.no_grad()
def write(data: str, count: int, folder: Path) -> dict[str, float]:
    """Every picture at every level, analysed by PyTorch and again by ONNX Runtime."""
    from nas_kd.codec.checkpoint import save_student
    from nas_kd.codec.onnx import export_onnx
    from nas_kd.data.images import to_tensor

    files: list[list] = []
    found = {"files": 0, "other_files": 0, "x_hat_off": 0.0}
    for name, student in students().items():
        save_student(student, folder / "students" / name)
    for name, student in stored(folder).items():
        (folder / "onnx" / name).mkdir(parents=True)
        encoder, decoder = (session(p) for p in export_onnx(student, folder / "onnx" / name))
        for picture in crops(data, count):
            x = to_tensor(np.ascontiguousarray(picture))
            y = student.analysis(x)
            theirs = [torch.from_numpy(part) for part in encoder.run(None, {"x": x.numpy()})]
            for level in LEVELS:
                own, other = (
                    student.coder.encode(*latents, level)
                    for latents in ((y, student.h_a(y)), theirs)
                )
                for coded in (own, other):
                    np.save(folder / f"{len(files)}.npy", coded.y_hat.numpy())
                    strings = [string.hex() for string in coded.strings]
                    shape = list(theirs[1].shape[2:])
                    files.append([name, level, strings, shape, coded.checksum])
                (x_hat,) = decoder.run(None, {"y_hat": other.y_hat.numpy()})
                ours = student.synthesis(other.y_hat).clamp(0, 1).numpy()
                found["files"] += 1
                found["other_files"] += own.strings != other.strings
                found["x_hat_off"] = max(found["x_hat_off"], float(np.abs(x_hat - ours).max()))
    (folder / "files.json").write_text(json.dumps(files))
    return found


@torch.no_grad()
def read(folder: Path, onednn: bool) -> dict[str, object]:
    everyone = stored(folder)
    counts = {"other_symbols": 0, "differ": 0, "garbled": 0}
    by_student = dict.fromkeys(sorted(everyone), 0)
    torch.backends.mkldnn.set_flags(_enabled=onednn, _allow_tf32=None)
    files = json.loads((folder / "files.json").read_text())
    for n, (name, level, strings, shape, checksum) in enumerate(files):
        raw = [bytes.fromhex(string) for string in strings]
        found = everyone[name].coder.decode(raw, tuple(shape), level)
        y_hat, wanted = found.y_hat.numpy(), np.load(folder / f"{n}.npy")
        differs = not np.array_equal(y_hat, wanted)
        counts["other_symbols"] += found.checksum != checksum
        counts["differ"] += differs
        counts["garbled"] += bool(np.abs(y_hat - wanted).max() > 1e-3 * np.abs(wanted).max())
        by_student[name] += differs
    return counts | {"differ_by_student": by_student}


def reader(setting: str, folder: Path) -> dict[str, object]:
    threads, onednn, env = SETTINGS[setting]
    settings = {**os.environ, **env, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--read", str(folder), "--onednn", str(int(onednn))]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = options(__doc__, quick="4 pictures")
    add_out(parser, "portability")
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--settings", default=",".join(SETTINGS), help="which readers, by comma")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--onednn", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(read(args.read, bool(args.onednn))))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = write(args.data, 4 if args.quick else args.pictures, Path(folder))
        result: dict[str, object] = {"files": 2 * found["files"], "onnxruntime": found}
        print("onnxruntime", found, flush=True)
        for setting in args.settings.split(","):
            result[setting] = reader(setting, Path(folder))
            print(setting, result[setting], flush=True)
    finish(result | hardware(), args.out)


if __name__ == "__main__":
    main()
