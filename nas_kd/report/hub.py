"""A student as model hubs expect it: a README with a YAML header, a config, safetensors; and its way there.

Uploading needs the package huggingface_hub and a token of one's own (``hf auth login``, or HF_TOKEN).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_kd import __version__
from nas_kd.codec.checkpoint import ARCH, WEIGHTS, load_student
from nas_kd.errors import NasKdError, UsageError
from nas_kd.measurement.codec_energy import ENERGY

if TYPE_CHECKING:
    from huggingface_hub import HfApi

README, CONFIG, RD = "README.md", "config.json", "rd.json"
FILES = (README, CONFIG, ARCH, WEIGHTS, RD, ENERGY, "encoder.onnx", "decoder.onnx")
"""What may be uploaded of a student's folder; nothing else is."""

TAGS = ("image-compression", "learned-image-compression", "knowledge-distillation", "nas-kd")
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""Owner and name, as the hub takes them."""


def header() -> str:
    """The README's YAML header. It has no license: that is for whoever publishes the weights to say."""
    tags = "\n".join(f"- {tag}" for tag in TAGS)
    return f"---\nlibrary_name: nas-kd\npipeline_tag: image-to-image\ntags:\n{tags}\nmetrics:\n- psnr\n---\n\n"


def usage() -> str:
    """How the files are used, for the README."""
    return (
        "\n## Use\n\n"
        "    pip install nas-kd\n"
        "    nas-kd compress photo.png photo.nkd --student FOLDER\n"
        "    nas-kd decompress photo.nkd restored.png --student FOLDER\n\n"
        "FOLDER holds these files. In Python `nas_kd.load_student(FOLDER)` is a CompressionModel of CompressAI.\n"
    )


def config() -> str:
    """The text of ``config.json``, by which hubs count downloads; the arch itself stands in ``arch.json``."""
    known = {"library_name": "nas-kd", "nas_kd": __version__, "arch": ARCH, "weights": WEIGHTS}
    return json.dumps(known, indent=1) + "\n"


def push(folder: Path, repository: str, public: bool = False, api: HfApi | None = None) -> str:
    """Upload a student's folder to a model hub, in one commit; returns its address.

    Args:
        folder: of a student; it is loaded first, so that what cannot be read is not published.
        repository: owner/name; made where there is none.
        public: else only its owner sees it, where it is made now.
        api: the hub; Hugging Face's, unless given.

    Raises:
        UsageError: no student there, no such name, no package, or no token.
        NasKdError: the hub refused, or was not reached.
    """
    if not REPOSITORY.fullmatch(repository):
        raise UsageError(f"repository {repository!r}: must be OWNER/NAME, letters, digits, - _ .")
    student = load_student(folder)
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    written = {README: f"{header()}# {folder.name}\n\n{student.arch}\n{usage()}", CONFIG: config()}
    files |= {name: text.encode() for name, text in written.items() if name not in files}
    return _upload(api or _hub(), repository, public, files)


def _hub() -> HfApi:
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError as error:
        raise UsageError(
            "push: package huggingface_hub is not installed: pip install 'nas-kd[hub]'"
        ) from error
    if get_token() is None:
        raise UsageError(
            "push: no token of Hugging Face here: run `hf auth login`, or set HF_TOKEN"
        )
    return HfApi(library_name="nas-kd", library_version=__version__)


def _upload(api: HfApi, repository: str, public: bool, files: dict[str, bytes]) -> str:
    from huggingface_hub import CommitOperationAdd

    what: list[Any] = [CommitOperationAdd(name, data) for name, data in files.items()]
    try:
        address = api.create_repo(repository, private=not public, exist_ok=True)
        api.create_commit(repository, what, commit_message="Student of nas-kd")
    except Exception as error:  # the hub's client raises what its HTTP library does, and its own
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NasKdError(f"{repository}: the hub did not take it ({said}); try again") from error
    return str(address)
