"""Remake what the README shows: its picture, its table and the figures of both, after a change of weights.

    make showcase                                  # slices of the built-in teacher, some minutes of one core
    python scripts/showcase.py --study demo        # a search's own front instead
    python scripts/showcase.py --redraw            # the picture alone, of the newest results

It writes benchmarks/results/showcase/DATE.json, docs/showcase.png and the README's table.
"""

import argparse
import json
import sys
from datetime import date
from pathlib import Path

import torch
from figures import written

import nas_kd
from nas_kd.codec.arch import Arch
from nas_kd.codec.bitstream import decode, encode
from nas_kd.codec.checkpoint import load_student, ready
from nas_kd.codec.macs import arch_cost
from nas_kd.codec.search_space import load_space
from nas_kd.data.images import open_images
from nas_kd.data.metrics import psnr_db
from nas_kd.evaluation.bd_rate import bd_rate
from nas_kd.evaluation.classical import against, classical_curve, from_file, to_file
from nas_kd.evaluation.rate_distortion import StudentCodec, evaluate, evaluate_real
from nas_kd.files import replacing, write_text
from nas_kd.places import TEACHERS
from nas_kd.seeds import derived_seed
from nas_kd.study.anchor import interval_db
from nas_kd.study.front import pareto_front
from nas_kd.supernet.from_teacher import Inherited
from nas_kd.teachers.teacher import load_teacher

ROOT = Path(__file__).parents[1]
RESULTS, PICTURE, README = ROOT / "benchmarks/results/showcase", "docs/showcase.png", "README.md"
CARD = TEACHERS / "mini" / "card.json"
VERSUS = {"jpeg": "JPEG", "webp": "WebP", "jpeg2000": "JPEG 2000", "avif": "AVIF"}
PX = 512 * 768
BEGIN, END = "<!-- results: scripts/showcase.py writes this table -->\n", "<!-- /results -->"
SHOWN, LEVEL = "scikit-image/chelsea.png", 2
WINDOW = (slice(20, 230), slice(110, 330))
"""Rows and columns of the photograph that are drawn."""


def cost_of(arch):
    cost = arch_cost(arch)
    sides = {
        f"{side}_kmac_px": getattr(cost, side).macs / PX / 1e3 for side in ("encoder", "decoder")
    }
    return sides | {"parameters_m": cost.total.parameters / 1e6}


def scored(arch, student, anchor, images):
    """A tried student: its BD-rate against the teacher, by estimated rates, as a search has it."""
    curve = evaluate(StudentCodec(student), images).curve()
    found = bd_rate(anchor, curve, interval_db(anchor))
    print(f"{arch}: {found.value if found.value is not None else found.reason}", flush=True)
    return {"arch": arch.to_json(), "bd_rate_teacher": found.value} | cost_of(arch)


def slices(count):
    """(arch, student) of random archs of ``demo``, as the built-in teacher's weights have them."""
    space, family = load_space("demo"), Inherited(load_teacher("mini").student)
    archs = [space.draw(derived_seed(0, "showcase", i)) for i in range(count)]
    return {arch: family.student(arch) for arch in dict.fromkeys(archs)}


def of_study(name):
    """The same of a study's front."""
    return {one.arch: load_student(one.student) for one in nas_kd.front(name)}


def judged(student, images, classical):
    """A codec's row of the table: BD-rates by real bitstreams, each over its own interval."""
    curve = evaluate_real(student, images, processes=1).curve()
    found = {title: against(anchor, curve) for title, anchor in classical.items()}
    return {
        "bpp": curve.bpp,
        "psnr_db": curve.psnr_db,
        "bd_rate_percent": {title: one["bd_rate"] for title, one in found.items()},
        "reasons": {title: one["reason"] for title, one in found.items() if one["reason"]},
    } | cost_of(student.arch)


def shown(student, images):
    """One photograph by the student, and by WebP in a file of no fewer bytes; with the figures of both."""
    image = images.images[images.names.index(SHOWN)]
    ours = encode(student, image, LEVEL)
    files = [to_file(image, "WEBP", {"quality": q, "method": 6}) for q in range(101)]
    theirs = next(data for data in files if len(data) >= len(ours))
    restored = {"student": decode(student, ours), "WebP": from_file(theirs)}
    sizes = {"student": len(ours), "WebP": len(theirs)}
    figures = {
        name: {"bytes": sizes[name], "psnr_db": psnr_db(picture, image)}
        for name, picture in restored.items()
    }
    return {"original": image} | restored, {"picture": SHOWN, "level": LEVEL} | figures


def drawn(found, pictures, file):
    """The front, and the photograph three times."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.5), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1.25, 1, 1, 1))
    points = [(row["decoder_kmac_px"], row["bd_rate_teacher"]) for row in found["students"]]
    line = sorted(p for p, row in zip(points, found["students"], strict=True) if row["on_front"])
    axes[0].scatter(*zip(*points, strict=True), color="0.7", s=18, label="tried")
    axes[0].plot(*zip(*line, strict=True), "o-", color="#0072B2", label="front")
    axes[0].plot(*points[0], "o", ms=12, mfc="none", color="#D55E00", label="student shown")
    axes[0].set(xlabel="decoder: thousand multiplications a pixel")
    axes[0].set(ylabel="more bits than the teacher, %")
    axes[0].legend()
    for place, (name, picture) in zip(axes[1:], pictures.items(), strict=True):
        place.imshow(picture[WINDOW], interpolation="nearest")
        place.set_axis_off()
        place.set_title(caption(name, found["photograph"].get(name)), fontsize=11)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=110, format="png", bbox_inches="tight")


def caption(name, found):
    if found is None:
        return f"{name}\n"
    return f"{name}\n{found['bytes']:,} bytes, {found['psnr_db']:.2f} dB"


def table(found, card):
    """The README's table, in Markdown; what has no figure is a dash."""
    lines = [
        f"| | pictures | {' | '.join(VERSUS.values())} | decoder kMAC/px |",
        f"|---|---|{'---|' * len(VERSUS)}---|",
    ]
    teacher = card | {"decoder_kmac_px": found["rows"]["mini"]["decoder_kmac_px"]}
    data = f"{card['evaluated_on']['pictures']} of BSDS500 test"
    rows = [("`mini`, the built-in teacher", data, teacher)]
    tried = f"of {found['tried']} students, not trained further"
    names = {"mini": "`mini`", "best": f"best {tried}", "smallest": f"smallest {tried}"}
    rows += [(names[key], "4 built in", row) for key, row in found["rows"].items()]
    for name, data, row in rows:
        rates = (row["bd_rate_percent"].get(title) for title in VERSUS.values())
        cells = ["–" if rate is None else f"{rate:+.1f} %" for rate in rates]
        lines.append(f"| {name} | {data} | {' | '.join(cells)} | {row['decoder_kmac_px']:.1f} |")
    return "\n".join(lines) + "\n"


def newest():
    return max(RESULTS.glob("*.json"))


def with_table(text):
    """The README with the table of the newest results."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    made = table(json.loads(newest().read_text()), json.loads(CARD.read_text()))
    return before + BEGIN + made + END + after


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", help="a study of this folder, in place of slices")
    parser.add_argument("--count", type=int, default=24, help="slices that are tried")
    parser.add_argument("--redraw", action="store_true", help="the picture of the newest results")
    return parser.parse_args()


def rows_of(tried, teacher, images):
    """Students that have a BD-rate against the teacher, the best first."""
    anchor = evaluate(teacher, images).curve()
    rows = [scored(arch, student, anchor, images) for arch, student in tried.items()]
    rows = [row for row in rows if row["bd_rate_teacher"] is not None]
    rows.sort(key=lambda row: row["bd_rate_teacher"])
    front = pareto_front([(row["bd_rate_teacher"], row["decoder_kmac_px"]) for row in rows])
    if not front:
        sys.exit("none of the students has a BD-rate against the teacher: try more, --count 60")
    return [row | {"on_front": i in front} for i, row in enumerate(rows)]


def results(given, images):
    """All that the README shows, as JSON can hold it."""
    teacher = load_teacher("mini")
    tried = of_study(given.study) if given.study else slices(given.count)
    rows = rows_of(tried, teacher, images)
    chosen = {"best": rows[0], "smallest": [row for row in rows if row["on_front"]][-1]}
    students = {key: ready(tried[Arch.from_json(row["arch"])]) for key, row in chosen.items()}
    students = {"mini": load_student(TEACHERS / "mini")} | students
    classical = {title: classical_curve(name, images) for name, title in VERSUS.items()}
    slices_of_mini = f"{len(tried)} random archs of demo, slices of mini, not trained further"
    return students["best"], {
        "date": date.today().isoformat(),
        "source": given.study or slices_of_mini,
        "teacher_fingerprint": teacher.fingerprint,
        "data_fingerprint": images.fingerprint,
        "rows": {k: judged(s, images, classical) for k, s in students.items()},
        "tried": len(tried),
        "without_bd_rate": len(tried) - len(rows),
        "students": rows,
    }


def earlier(images):
    """The newest results and their best student, made again."""
    found = json.loads(newest().read_text())
    arch = Arch.from_json(found["students"][0]["arch"])
    if found["source"].endswith("not trained further"):
        return ready(Inherited(load_teacher("mini").student).student(arch)), found
    return of_study(found["source"])[arch], found


def main():
    given = parsed()
    torch.set_num_threads(1)
    images = open_images("builtin", "eval")
    best, found = earlier(images) if given.redraw else results(given, images)
    pictures, found["photograph"] = shown(best, images)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS / f"{found['date']}.json", json.dumps(found, indent=1) + "\n")
    drawn(found, pictures, ROOT / PICTURE)
    write_text(ROOT / README, with_table((ROOT / README).read_text()))
    written()


if __name__ == "__main__":
    main()
