"""What students' forms cost and bring: multiplications, milliseconds and the R-D cost of equal training.

    python benchmarks/blocks.py --quick
    python benchmarks/blocks.py --steps "" --rounds 9                        # the clock alone
    python benchmarks/blocks.py --data DIR --eval-data DIR --steps 10000 --seeds 0,1 --rounds 0 --kept FILE --out

Every form has a decoder of about 5 kMAC a pixel, the hyper-decoder included, so that they stand side by side; encoders
are as large as the decoder, or several times that. Milliseconds are of whole files, from pixels to bytes and back, at
level 3 on one thread: the processor's, which on an idle core are those of the clock; medians of rounds in which every
form has its turn. Students are those of the last training here, else untrained, which tells in the entropy coding
alone, whose share stands beside: an untrained one has all latents in its strings.
Trainings start from the linear codec and go without a teacher, each with a rate that falls to zero at its end; the R-D
cost is the mean logarithm over levels in per cent (1 is 1 %; lower is better), by estimated rates. ``--kept`` is a file
of finished trainings: a run that was broken off takes them from there.

The last line is JSON: a row for each form, with its trainings.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from codec import picture
from harness import add_out, finish, hardware, options, rd_loss, said

from nas_kd.codec.arch import Arch, Entropy, Transform
from nas_kd.codec.bitstream import decode, encode
from nas_kd.codec.checkpoint import load_student, ready, save_student
from nas_kd.codec.macs import FRAME_PX, arch_cost
from nas_kd.codec.student import LMBDAS, Student
from nas_kd.data.images import crop_pool, open_images
from nas_kd.distillation.training import CropPool, Recipe, Run
from nas_kd.evaluation.rate_distortion import StudentCodec, evaluate
from nas_kd.recipe import Optimiser
from nas_kd.teachers.targets import FIRST_CROPS

PLAIN = Transform("trunk4", (0, 48, 96, 256), (0, 1, 2, 1), block="depthwise", kernel=3)
PATCHES = Transform("trunk16", (0, 0, 0, 512), (0, 0, 0, 4), block="gated", kernel=3)
GATES = (False, False, False, True)


def form(
    decoder: Transform = PLAIN,
    encoder: Transform = PLAIN,
    entropy: Entropy = "mean-scale",
    M: int = 192,
    hyper: int = 64,
) -> Arch:
    """A student of these sides."""
    return Arch(encoder, decoder, M=M, hyper=hyper, entropy=entropy).canonical()


FORMS = {
    "residual": form(
        replace(PLAIN, widths=(0, 48, 64, 176), depths=(0, 0, 1, 1), block="residual")
    ),
    "depthwise": form(),
    "depthwise, quad": form(entropy="quad"),
    "quad, hyper 32": form(replace(PLAIN, widths=(0, 48, 96, 280)), entropy="quad", hyper=32),
    "gated": form(replace(PLAIN, depths=(0, 1, 0, 1), block="gated")),
    "summed": form(replace(PLAIN, depths=(0, 1, 0, 1), block="summed")),
    "depthwise, all at 1/16": form(replace(PLAIN, depths=(0, 0, 0, 3))),
    "gated, wide at 1/16": form(
        replace(PLAIN, widths=(0, 48, 96, 304), depths=(0, 0, 0, 1), block="gated")
    ),
    "summed, wide at 1/16": form(
        replace(PLAIN, widths=(0, 48, 96, 320), depths=(0, 0, 0, 1), block="summed")
    ),
    "renderer": form(
        replace(PLAIN, stem="trunk4-render", widths=(0, 48, 0, 256), depths=(0, 1, 0, 2))
    ),
    "renderer, gated": form(
        Transform("trunk4-render", (0, 40, 0, 256), (0, 2, 0, 1), block="gated", kernel=3)
    ),
    "depthwise, ReLU6": form(
        replace(PLAIN, activation="relu6"), replace(PLAIN, activation="relu6")
    ),
    "stem to 1/16 on both sides": form(
        *(2 * [replace(PLAIN, stem="trunk16", widths=(0, 0, 0, 320), depths=(0, 0, 0, 2))])
    ),
    "dual, depthwise": form(PLAIN, entropy="dual"),
    "dual, all at 1/16": form(
        replace(PLAIN, widths=(0, 48, 96, 240), depths=(0, 0, 0, 3)), entropy="dual"
    ),
    "dual, stem to 1/16": form(
        replace(PLAIN, stem="trunk16", widths=(0, 0, 0, 288), depths=(0, 0, 0, 2)), entropy="dual"
    ),
    "dual, renderer": form(
        replace(PLAIN, stem="trunk4-render", widths=(0, 48, 0, 256), depths=(0, 1, 0, 2)),
        entropy="dual",
    ),
    "dual, hyper 32": form(replace(PLAIN, widths=(0, 48, 96, 320)), entropy="dual", hyper=32),
    "dual, M 128, hyper 32": form(
        replace(PLAIN, widths=(0, 48, 96, 336)), entropy="dual", M=128, hyper=32
    ),
    "encoder of patches": form(encoder=PATCHES),
    "encoder of patches, channel gates": form(encoder=replace(PATCHES, attention=GATES)),
    "encoder of patches, depth 8": form(encoder=replace(PATCHES, depths=(0, 0, 0, 8))),
}
QUICK = "depthwise,encoder of patches"
LEVEL, SIDE = 3, 256
PICTURES = {"768x512": FRAME_PX, "1080p": (1080, 1920)}


def begun(arch: Arch, crops: torch.Tensor, seed: int = 0, lmbdas=LMBDAS) -> Student:
    """The linear codec that a training starts from."""
    torch.manual_seed(seed)
    student = Student(arch, lmbdas)
    student.start_from(crops[:FIRST_CROPS].float() / 255)
    return student


def timed(work) -> tuple[float, Any]:
    """Milliseconds of the processor, and what came out."""
    started = time.process_time()
    found = work()
    return 1000 * (time.process_time() - started), found


def coding_ms(student: Student, data: bytes) -> float:
    """Of a decoder, what its entropy coding takes, the networks of probabilities included."""
    spent = []
    decoding = student.coder.decode

    def watched(*given):
        ms, found = timed(lambda: decoding(*given))
        spent.append(ms)
        return found

    student.coder.decode = watched
    decode(student, data)
    del student.coder.decode
    return sum(spent)


def clocked(students: dict[str, Student], rounds: int) -> dict[str, dict[str, float]]:
    """Medians of encoding and decoding and of the part of decoding that is entropy coding, ms by form and picture."""
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in students}
    images = {size: picture("builtin", shape) for size, shape in PICTURES.items()}
    for _ in range(rounds):
        for size, image in images.items():
            for name, student in students.items():
                encode_ms, data = timed(lambda s=student, i=image: encode(s, i, LEVEL))
                decode_ms, _ = timed(lambda s=student, d=data: decode(s, d))
                found = {"encode": encode_ms, "decode": decode_ms}
                found["entropy_coding"] = coding_ms(student, data)
                for what, ms in found.items():
                    taken[name].setdefault(f"{what}_ms_{size}", []).append(ms)
    return {
        name: {what: round(statistics.median(ms), 1) for what, ms in one.items()}
        for name, one in taken.items()
    }


def trained(
    student: Student, crops: torch.Tensor, recipe: Recipe, images, judged=StudentCodec, run=Run
) -> dict[str, Any]:
    """One training: its seconds and its curve."""
    started = time.process_time()
    run(student, CropPool(crops), recipe).run()
    seconds = time.process_time() - started
    curve = evaluate(judged(student.eval()), images).curve()
    return {
        "steps": recipe.steps,
        "seed": recipe.seed,
        "cpu_s": round(seconds, 1),
        "rd_cost_percent": round(rd_loss(curve, student.lmbdas), 2),
        "bpp_est": [round(float(b), 4) for b in curve.bpp],
        "psnr_db": [round(float(q), 3) for q in curve.psnr_db],
    }


def row_of(name: str) -> dict[str, Any]:
    """A form and what it costs."""
    arch, pixels = FORMS[name], 1000 * FRAME_PX[0] * FRAME_PX[1]
    cost = arch_cost(arch)
    return {
        "form": name,
        "arch": str(arch),
        "decoder_kmac_per_px": round(cost.decoder.macs / pixels, 2),
        "encoder_kmac_per_px": round(cost.encoder.macs / pixels, 2),
        "parameters": cost.total.parameters,
    }


class Kept:
    """Finished trainings by what they were, in a file of a line each, their students beside; or nothing is kept."""

    def __init__(self, path: Path | None):
        self.path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.rows = {json.dumps(row["of"]): row["training"] for row in map(json.loads, lines)}

    def or_made(
        self, of: list[Any], student: Student, make: Callable[[], dict[str, Any]]
    ) -> tuple[dict[str, Any], Student]:
        """The training ``of`` this and what it made of ``student``: kept, or made and kept now."""
        key = json.dumps(of)
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        folder = None if self.path is None else self.path.with_suffix("") / digest
        if key in self.rows:
            return self.rows[key], student if folder is None else load_student(folder)
        self.rows[key] = make()
        if self.path is not None and folder is not None:
            save_student(ready(student), folder)
            with self.path.open("a") as file:
                file.write(json.dumps({"of": of, "training": self.rows[key]}) + "\n")
        return self.rows[key], student


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def add_training(parser) -> None:
    """The options of trainings."""
    parser.add_argument("--crops", type=int, default=256, help=f"of {SIDE} px")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--optimiser", choices=get_args(Optimiser), default="adam")
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--eval-data", default="builtin")
    parser.add_argument("--kept", type=Path, help="a file of finished trainings")


def pictures(args) -> tuple[torch.Tensor, Any]:
    """Crops to train on, bytes [n, 3, H, W], and pictures to judge on."""
    pool = crop_pool(open_images(args.data, "train", 0), args.crops, SIDE, 0)
    return torch.from_numpy(np.asarray(pool)), open_images(args.eval_data, "eval")


def parsed():
    parser = options(__doc__)
    add_out(parser, "blocks")
    parser.add_argument("--steps", default="1000", help="of each training, comma-separated")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5, help="of the clock; 0: no clock")
    parser.add_argument("--forms", help="their names, separated by semicolons [default: all]")
    add_training(parser)
    args = parser.parse_args()
    if args.quick:
        args.steps, args.crops, args.rounds = "10", 24, 1
        args.forms = args.forms or QUICK.replace(",", ";", 1)
    args.forms = args.forms or ";".join(FORMS)
    return args


def main() -> None:
    args = parsed()
    torch.set_num_threads(1)
    names = args.forms.split(";")
    crops, images = pictures(args)
    rows = {name: row_of(name) for name in names}
    students = {name: begun(FORMS[name], crops) for name in names if args.rounds}
    kept = Kept(args.kept)
    for name in names:
        print(json.dumps(rows[name]), flush=True)
        rows[name]["trainings"] = []
    for steps in numbers(args.steps):
        for seed in numbers(args.seeds):
            for name in names:
                recipe = Recipe(steps, args.batch, seed=seed, optimiser=args.optimiser)
                of = [name, str(FORMS[name]), asdict(recipe), images.fingerprint, len(crops)]
                start = begun(FORMS[name], crops, seed)
                make = partial(trained, start, crops, recipe, images)
                one, students[name] = kept.or_made(of, start, make)
                rows[name]["trainings"].append(one)
                print(name, json.dumps(one), flush=True)
    if args.rounds:
        for name, found in clocked(
            {n: ready(student) for n, student in students.items()}, args.rounds
        ).items():
            rows[name] |= found
    about = {"benchmark": "blocks", "settings": said(args)} | hardware()
    finish(about | {"forms": list(rows.values())}, args.out)


if __name__ == "__main__":
    main()
