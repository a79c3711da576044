"""Commands about a codec: eval, compress, decompress, info."""

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
    from nas_kd.data.images import ImageSet
    from nas_kd.evaluation.rate_distortion import Measured

StudentDir = Annotated[Path, typer.Option("--student", help="folder of an exported student")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is there already")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

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
        str, typer.Option(help="builtin, a set by name, or a folder of pictures")
    ] = "builtin",
    versus: Annotated[
        str, typer.Option(help="classical codecs, by comma: jpeg, jpeg2000, webp, avif, jpegxl")
    ] = "",
    weights: Annotated[
        str | None, typer.Option(help="folder of CompressAI's zoo files [default: torch hub's]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rate and distortion of a student by real bitstreams, and BD-rates against classical codecs.

    Rates of CompressAI's models are estimated by likelihoods, which is said.

    Example: nas-kd eval students/trial-0003 --data photographs --versus jpeg,webp,avif
    """
    from nas_kd.data.images import open_images
    from nas_kd.evaluation.classical import check_names, compare, in_words

    names = check_names([name.strip() for name in versus.split(",") if name.strip()])
    images = open_images(data, "eval")
    measured = _evaluated(student, weights, images)
    curve = measured.curve()
    against = {name: compare(name, images, curve) for name in names}
    if as_json:
        described = measured.to_json() | {"left_out": images.skipped}
        print(json.dumps(described | ({"versus": against} if names else {})))
        return
    _tell_images(images)
    unit = "bpp" if measured.kind == "bpp" else "bpp, estimated"
    for level, (rate, quality) in enumerate(zip(curve.bpp, curve.psnr_db, strict=True), start=1):
        print(f"level {level}: {rate:.4f} {unit}, {quality:.2f} dB")
    for name, found in against.items():
        print(f"BD-rate against {name}: {in_words(found)}")


def _evaluated(codec: str, weights: str | None, images: ImageSet) -> Measured:
    """By real bitstreams; by likelihoods where it is CompressAI's, some of which take seconds a picture to decode."""
    from nas_kd.codec.checkpoint import load_student
    from nas_kd.evaluation.rate_distortion import evaluate, evaluate_real
    from nas_kd.places import TEACHERS
    from nas_kd.teachers.served import is_built_in, is_compressai

    if not is_compressai(codec):
        folder = TEACHERS / codec if is_built_in(codec) else Path(codec)
        return evaluate_real(load_student(folder), images)
    from nas_kd.codec.student import LMBDAS
    from nas_kd.measurement.networks import best_device
    from nas_kd.teachers.teacher import load_teacher

    # For which lambda a file was trained plays no part here.
    teacher = load_teacher(codec, weights, LMBDAS[0] if Path(codec).is_file() else None)
    return evaluate(teacher.to(best_device()), images, best_device())


def _tell_images(images: ImageSet) -> None:
    left_out = f", {images.skipped} left out" if images.skipped else ""
    print(f"{images.name}: {len(images)} picture{'s' * (len(images) != 1)}{left_out}")


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

    names = check_names([name.strip() for name in codecs.split(",") if name.strip()])
    images = open_images(data, "eval")
    found = [measured(name, images) for name in names or CODECS]
    if as_json:
        described = {"images": list(images.names), "data_fingerprint": images.fingerprint}
        print(json.dumps(described | {"left_out": images.skipped, "codecs": found}))
        return
    _tell_images(images)
    for one in found:
        _print_baseline(one)


def _print_baseline(found: dict[str, Any]) -> None:
    """A codec's points as lines."""
    if found["points"] is None:
        print(f"{found['codec']}: absent ({found['reason']})")
        return
    for p in found["points"]:
        similar = "absent (small)" if p["ms_ssim"] is None else f"{p['ms_ssim']:.4f}"
        wish = p["options"].get("quality", p["options"].get("quality_layers"))
        print(
            f"{found['codec']} {wish}: {p['bpp']:.4f} bpp, {p['psnr_db']:.2f} dB, MS-SSIM {similar}, "
            f"encode {p['encode_ms_per_mpx']:.0f} ms/Mpx, decode {p['decode_ms_per_mpx']:.0f} ms/Mpx"
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
    overwrite: Overwrite = False,
) -> None:
    """Compress a picture, every picture of a folder, or a pipe.

    Example: nas-kd compress photo.png photo.nkd --student students/trial-0003 --level 3
    """
    from nas_kd.data.image_file import suffixes, unread_suffixes
    from nas_kd.data.picture_files import below, compressed_name, convert, planned, read_picture

    if sum(wish is not None for wish in (level, target_bpp, target_psnr)) > 1:
        raise UsageError("--level, --target-bpp and --target-psnr: only one of them at a time")
    find = lambda folder: below(folder, suffixes(), unread_suffixes())  # noqa: E731
    work = planned(source, target, find, compressed_name, overwrite)

    from nas_kd.codec.bitstream import info
    from nas_kd.codec.checkpoint import load_student

    codec = load_student(student)

    def one(data: bytes, name: str) -> tuple[bytes, str]:
        image = read_picture(data, name)
        with _named(name):
            out = _compressed(codec, image, level, target_bpp, target_psnr)
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
    codec: Student, image: Image8, level: float | None, bpp: float | None, psnr: float | None
) -> Sought:
    from nas_kd.codec.bitstream import encode
    from nas_kd.codec.rate_control import Sought, file_of_bpp, file_of_psnr

    if bpp is not None:
        return file_of_bpp(codec, image, bpp)
    if psnr is not None:
        return file_of_psnr(codec, image, psnr)
    # One level is enough for a student of one; three is the middle of six.
    return Sought(encode(codec, image, min(3.0, codec.levels) if level is None else level))


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
