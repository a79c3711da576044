"""Fill a folder that a web server can serve: the page, a student's decoder for ONNX, and what it decodes.

    python docs/web/prepare.py students/trial-0003 photo.png site

The latents lie there as the entropy decoder gives them, in float32: far more bytes than the coded file, whose size is
said beside. The entropy coder itself is Python, and no part of the page.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

import nas_kd
from nas_kd.codec.bitstream import encode
from nas_kd.data.images import to_tensor
from nas_kd.data.metrics import padded
from nas_kd.data.picture_files import png, read_picture

PAGE = Path(__file__).with_name("index.html")
LEVEL = 3


@torch.no_grad()
def main(student_folder, photograph, site):
    student = nas_kd.load_student(student_folder)
    image = read_picture(Path(photograph).read_bytes(), photograph)
    y_hat = student.compress(padded(to_tensor(image)), LEVEL)["y_hat"]
    about = {"height": image.shape[0], "width": image.shape[1], "shape": list(y_hat.shape)}
    about |= {"level": LEVEL, "bytes": len(encode(student, image, LEVEL))}
    folder = Path(site)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "about.json").write_text(json.dumps(about))
    (folder / "latents.bin").write_bytes(y_hat.contiguous().numpy().tobytes())
    (folder / "original.png").write_bytes(png(image))
    shutil.copy(PAGE, folder)
    shutil.copy(Path(student_folder) / "decoder.onnx", folder)
    print(f"{site}: {about['width']}x{about['height']}, {about['bytes']} bytes at level {LEVEL}")


if __name__ == "__main__":
    main(*sys.argv[1:])
