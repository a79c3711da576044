"""Commands about a codec: eval, compress, decompress."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Annotated

import typer

from nas_kd.errors import UsageError

StudentDir = Annotated[Path, typer.Option("--student", help="folder of an exported student")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

app = typer.Typer()


@app.command(name="eval")
def evaluate(
    student: Annotated[Path, typer.Argument(help="folder of a student")],
    data: Annotated[str, typer.Option(help="builtin or a folder of pictures")] = "builtin",
    as_json: AsJson = False,
) -> None:
    """Rate and distortion of a student by real bitstreams.

    Example: nas-kd eval students/trial-0003 --data photographs --json
    """
    from nas_kd.data import open_images
    from nas_kd.evaluate import evaluate_real
    from nas_kd.weights import load_student

    measured = evaluate_real(load_student(student), open_images(data, "eval"))
    if as_json:
        print(json.dumps(measured.to_json()))
        return
    curve = measured.curve()
    for level, (rate, quality) in enumerate(zip(curve.bpp, curve.psnr_db, strict=True), start=1):
        print(f"level {level}: {rate:.4f} bpp, {quality:.2f} dB")


@app.command()
def compress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="a picture")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="the compressed file")],
    student: StudentDir,
    level: Annotated[float, typer.Option(help="1 to the student's levels; fractions too")] = 3.0,
) -> None:
    """Compress a picture.

    Example: nas-kd compress photo.png photo.nkd --student students/trial-0003 --level 3
    """
    from nas_kd.bitstream import encode
    from nas_kd.data import read_image
    from nas_kd.weights import load_student

    image = read_image(source)
    data = encode(load_student(student), image, level)
    _write_bytes(target, data)
    pixels = image.shape[0] * image.shape[1]
    print(f"{target}: {len(data)} bytes, {8 * len(data) / pixels:.4f} bpp with its header")


@app.command()
def decompress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="a compressed file")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="the picture, .png")],
    student: StudentDir,
) -> None:
    """Restore a picture.

    Example: nas-kd decompress photo.nkd photo.png --student students/trial-0003
    """
    import io

    from PIL import Image

    from nas_kd.bitstream import decode
    from nas_kd.errors import BitstreamError
    from nas_kd.weights import load_student

    try:
        data = source.read_bytes()
    except OSError as error:
        raise BitstreamError(f"{source}: cannot be read ({error.strerror}); give a file") from error
    buffer = io.BytesIO()
    Image.fromarray(decode(load_student(student), data)).save(buffer, "PNG")
    _write_bytes(target, buffer.getvalue())


def _write_bytes(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UsageError(f"{path}: cannot be written ({error.strerror}); give another") from error
