"""Commands about a codec: eval, compress, decompress, info, probe."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas_kd.errors import UsageError

if TYPE_CHECKING:
    from nas_kd.codec.rate_control import Sought
    from nas_kd.codec.student import Student
    from nas_kd.data.image_file import Image8

StudentDir = Annotated[Path, typer.Option("--student", help="folder of an exported student")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is there already")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

MOST_EFFORT = 9
PROBE_CROPS, PROBE_SIDE_PX = 12, 192

app = typer.Typer()


@app.command(name="eval")
def evaluate(
    student: Annotated[
        str,
        typer.Argument(
            metavar="CODEC", help="folder of a student, or a teacher such as cheng2020:3"
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "--eval-data",
            help="builtin, a set by name, a folder of pictures, or several by comma",
        ),
    ] = "builtin",
    versus: Annotated[
        str, typer.Option(help="codecs by comma; on Kodak published ones too: vtm, ...")
    ] = "",
    table: Annotated[
        Path | None, typer.Option("--csv", help="write a row for each picture and level")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="folder of CompressAI's zoo files [default: torch hub's]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A student by real bitstreams: rate, PSNR, MS-SSIM, time and memory, and BD-rates against other codecs.

    Rates of CompressAI's models are estimated by likelihoods, which is said.

    Example: nas-kd eval students/trial-0003 --data photographs --versus jpeg,webp,avif --csv points.csv
    """
    from nas_kd.data.picture_files import require_writable
    from nas_kd.evaluation.judged import absences, as_csv, in_lines, in_table, judge, open_sets
    from nas_kd.evaluation.published import split_names
    from nas_kd.files import write_text

    split_names(versus)  # a slip of the pen is told before the student is loaded
    if table is not None:
        require_writable(table, "--csv")
    sets = open_sets(data)
    judged = judge(_codec(student, weights), sets, versus)
    if table is not None:
        write_text(table, as_csv(judged))
    if as_json:
        print(json.dumps(judged.to_json()))
    elif len(judged.sets) == 1:
        print("\n".join(in_lines(judged)))
    else:
        _show(in_table(judged))
        print("\n".join(absences(judged)))


def _codec(spec: str, weights: str | None) -> Any:
    """A student by its folder or a teacher's name, or CompressAI's models."""
    from nas_kd.codec.checkpoint import load_student
    from nas_kd.places import TEACHERS
    from nas_kd.teachers.served import is_built_in, is_compressai

    if not is_compressai(spec):
        return load_student(TEACHERS / spec if is_built_in(spec) else Path(spec))
    from nas_kd.codec.student import LMBDAS
    from nas_kd.teachers.teacher import load_teacher

    # For which lambda a file was trained plays no part here.
    return load_teacher(spec, weights, LMBDAS[0] if Path(spec).is_file() else None)


def _show(table: Any) -> None:
    from rich.console import Console

    Console(soft_wrap=False).print(table)


@app.command()
def baselines(
    data: Annotated[str, typer.Option(help="builtin or a folder of pictures")] = "builtin",
    codecs: Annotated[str, typer.Option(help="which, by comma [default: all that are there]")] = "",
    as_json: AsJson = False,
) -> None:
    """Classical codecs on pictures: rate, PSNR, MS-SSIM, time, and energy where the CPU has a meter.

    Example: nas-kd baselines --data photographs --codecs jpeg,avif
    """
    from nas_kd.data.images import open_images
    from nas_kd.evaluation.classical import CODECS, check_names
    from nas_kd.evaluation.classical_cost import measured
    from nas_kd.evaluation.judged import heading

    names = check_names([name.strip() for name in codecs.split(",") if name.strip()])
    images = open_images(data, "eval")
    found = [measured(name, images) for name in names or CODECS]
    if as_json:
        described = {"images": list(images.names), "data_fingerprint": images.fingerprint}
        print(json.dumps(described | {"left_out": images.skipped, "codecs": found}))
        return
    print(heading(images))
    for one in found:
        _print_baseline(one)


def _print_baseline(found: dict[str, Any]) -> None:
    """A codec's points as lines."""
    from nas_kd.data.similarity import in_words

    if found["points"] is None:
        print(f"{found['codec']}: absent ({found['reason']})")
        return
    for p in found["points"]:
        wish = p["options"].get("quality", p["options"].get("quality_layers"))
        print(
            f"{found['codec']} {wish}: {p['bpp']:.4f} bpp, {p['psnr_db']:.2f} dB, "
            f"MS-SSIM {in_words(p['ms_ssim'])}, encode {p['encode_ms_per_mpx']:.0f} ms/Mpx, "
            f"decode {p['decode_ms_per_mpx']:.0f} ms/Mpx"
        )
    for part in ("encoder", "decoder"):
        reading = found["energy"][part]
        known = reading["state"] == "measured"
        said = (
            f"{reading['value']:.3g} +- {reading['uncertainty']:.2g} mJ/Mpx"
            if known
            else f"absent ({reading['reason']})"
        )
        print(f"{found['codec']} {part} energy: {said}")


@app.command()
def compress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="a picture, a folder, or -")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="the file, a folder, or -")],
    student: StudentDir,
    level: Annotated[
        float | None, typer.Option(help="1 to the student's levels; fractions too [default: 3]")
    ] = None,
    target_bpp: Annotated[
        float | None, typer.Option(help="highest level of at most this many bits per pixel")
    ] = None,
    target_psnr: Annotated[
        float | None, typer.Option(help="lowest level of at least this many dB")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="refuse a target that the student cannot reach")
    ] = False,
    effort: Annotated[
        int,
        typer.Option(
            help="0 to 9: seek smaller files, each step up twice as long; decoding stays as it is"
        ),
    ] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Compress a picture, every picture of a folder, or a pipe.

    Example: nas-kd compress photo.png photo.nkd --student students/trial-0003 --level 3
    """
    from nas_kd.data.image_file import suffixes, unread_suffixes
    from nas_kd.data.picture_files import below, compressed_name, convert, planned, read_picture

    if sum(wish is not None for wish in (level, target_bpp, target_psnr)) > 1:
        raise UsageError("--level, --target-bpp and --target-psnr: only one of them at a time")
    if not 0 <= effort <= MOST_EFFORT:
        raise UsageError(f"--effort {effort}: must be 0 (one pass) to {MOST_EFFORT} (longest)")
    find = lambda folder: below(folder, suffixes(), unread_suffixes())  # noqa: E731
    work = planned(source, target, find, compressed_name, overwrite)

    from nas_kd.codec.bitstream import info
    from nas_kd.codec.checkpoint import load_student

    codec = load_student(student)

    def one(data: bytes, name: str) -> tuple[bytes, str]:
        image = read_picture(data, name)
        with _named(name):
            out = _compressed(codec, image, level, target_bpp, target_psnr, effort)
            if out.missed is not None:
                _tell_missed(name, out.missed, strict)
        found = info(out.data)
        where = f"level {found['level']:.4g}"
        return out.data, f"{found['bytes']} bytes, {found['bpp']:.4f} bpp with its header, {where}"

    convert(work, one)


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """What goes wrong says in which file."""
    try:
        yield
    except UsageError as error:
        raise type(error)(f"{file}: {error}") from error


def _tell_missed(name: str, missed: str, strict: bool) -> None:
    if strict:
        raise UsageError(f"{missed} of this picture; ask for what it can do, or leave out --strict")
    print(f"nas-kd: warning: {name}: {missed}; that is taken", file=sys.stderr)


def _compressed(
    codec: Student,
    image: Image8,
    level: float | None,
    bpp: float | None,
    psnr: float | None,
    effort: int,
) -> Sought:
    from nas_kd.codec.rate_control import file_of_bpp, file_of_level, file_of_psnr

    if bpp is not None:
        return file_of_bpp(codec, image, bpp, effort)
    if psnr is not None:
        return file_of_psnr(codec, image, psnr, effort)
    # One level is enough for a student of one; three is the middle of six.
    asked = min(3.0, codec.levels) if level is None else level
    return file_of_level(codec, image, asked, effort)


@app.command()
def decompress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="a compressed file, a folder, or -")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="the picture.png, a folder, or -")],
    student: StudentDir,
    overwrite: Overwrite = False,
) -> None:
    """Restore a picture, every picture of a folder, or a pipe; always as PNG.

    Example: nas-kd decompress photo.nkd restored.png --student students/trial-0003
    """
    from nas_kd.data.picture_files import PIPE, SUFFIX, below, convert, picture_name, planned, png

    single = not source.is_dir() and str(target) != PIPE
    if single and target.suffix.lower() != ".png":
        raise UsageError(f"{target}: pictures are written as PNG; give a name that ends in .png")
    work = planned(source, target, lambda at: below(at, {SUFFIX}), picture_name, overwrite)

    from nas_kd.codec.bitstream import decode
    from nas_kd.codec.checkpoint import load_student

    codec = load_student(student)

    def one(data: bytes, name: str) -> tuple[bytes, str]:
        with _named(name):
            image = decode(codec, data)
        return png(image), f"{image.shape[1]}x{image.shape[0]} pixels"

    convert(work, one)


@app.command()
def info(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="a compressed file, or -")],
    as_json: AsJson = False,
) -> None:
    """What a compressed file says of itself; needs no student.

    Example: nas-kd info photo.nkd
    """
    from nas_kd.codec.bitstream import info as read_info
    from nas_kd.data.picture_files import read_bytes

    data = read_bytes(source)
    with _named(str(source)):
        found = read_info(data)
    if as_json:
        print(json.dumps(found))
        return
    print(f"{found['magic']}, version {found['version']}, student {found['student']}")
    grey = ", grey" if found["grey"] else ""
    print(f"{found['width']}x{found['height']} pixels{grey}, level {found['level']:.6g}")
    parts = " + ".join(f"{found[part + '_bytes']} {part}" for part in ("header", "y", "z"))
    print(f"{found['bytes']} bytes = {parts}; {found['bpp']:.4f} bpp")


@app.command()
def probe(
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="folder of a student")],
    data: Annotated[str, typer.Option(help="builtin, a set by name, or a folder")] = "builtin",
    as_json: AsJson = False,
) -> None:
    """Where a student's channels are wasted and where lacking: the dimension of each block's input.

    It is the number of principal components on which a block may be fed for less than 1 % of R-D cost.

    Example: nas-kd probe students/trial-0003
    """
    from nas_kd.cli.common import require_there

    require_there(student)
    import torch

    from nas_kd.codec.checkpoint import load_student
    from nas_kd.codec.probe import probe as probed
    from nas_kd.data.images import crop_pool, open_images

    codec = load_student(student)
    crops = crop_pool(open_images(data, "eval"), PROBE_CROPS, PROBE_SIDE_PX, 0)
    found = probed(codec, torch.from_numpy(crops).float() / 255)
    if not found:
        raise UsageError(f"{student}: {codec.arch} has no blocks; there is nothing to probe")
    if as_json:
        rows = [vars(one) | {"verdict": one.verdict} for one in found]
        print(json.dumps({"student": str(student), "allowed_percent": 1, "layers": rows}))
        return
    print(f"{'layer':24} {'channels':>8} {'dimension':>9}")
    for one in found:
        print(f"{one.layer:24} {one.channels:8} {one.dimension:9}  {one.verdict}".rstrip())
