"""Images: folders, the built-in set, crops and seeds.

An image is a uint8 array [H, W, 3] in RGB. What is read becomes that in one way: EXIF orientation
is applied, transparency is laid over white, grey and palette become RGB, 16-bit keeps its high
byte, a file of several frames gives its first, and colour profiles are ignored.

The built-in set downloads nothing. It has dead-leaves images (nas_kd.scenes) and the photographs
that the wheels of scikit-image and scikit-learn carry, cut to their centre where they exceed
512x768 (height x width):

    train  48 dead-leaves images of 256x256, which the seed decides, and astronaut, flower,
           hubble_deep_field, ihc, motorcycle_left, retina
    eval   chelsea, china, coffee, rocket: in no training set
"""

import hashlib
import importlib.util
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NoReturn, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nas_kd.cores import cores
from nas_kd.errors import DataError
from nas_kd.scenes import dead_leaves
from nas_kd.settings import BUILTIN

logger = logging.getLogger("nas_kd")

Image8 = NDArray[np.uint8]

SPLITS = ("train", "eval")
SIDE_MIN_PX = 16
HELD_BYTES = 2**29
"""Of decoded pictures that a process keeps."""
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
DEAD_LEAVES_COUNT = 48
DEAD_LEAVES_SIZE_PX = 256
CENTRE_PX = (512, 768)
PHOTOGRAPH_FOLDERS = {"scikit-image": "skimage/data", "scikit-learn": "sklearn/datasets/images"}
PHOTOGRAPHS = {
    "train": (
        "scikit-image/astronaut.png",
        "scikit-image/hubble_deep_field.jpg",
        "scikit-image/ihc.png",
        "scikit-image/motorcycle_left.png",
        "scikit-image/retina.jpg",
        "scikit-learn/flower.jpg",
    ),
    "eval": (
        "scikit-image/chelsea.png",
        "scikit-image/coffee.png",
        "scikit-image/rocket.jpg",
        "scikit-learn/china.jpg",
    ),
}


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in a fixed order, with what tells one set from another.

    Args:
        name: ``builtin/train`` or the folder, for people.
        images: uint8 [H, W, 3] each; a folder's are decoded when asked for.
        names: one per image, unique, relative to the set.
        sizes: (height, width) per image.
        fingerprint: sha256 over names and contents, the same in every process and place.
        skipped: image files that could not serve.
    """

    name: str
    images: Sequence[Image8]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    fingerprint: str
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.images)


def held(images: ImageSet) -> ImageSet:
    """The set with its pictures decoded now, once, where they take no more than HELD_BYTES; else as it is."""
    if sum(3 * height * width for height, width in images.sizes) > HELD_BYTES:
        return images
    return replace(images, images=list(images.images))


def open_images(spec: str, split: str, seed: int = 0) -> ImageSet:
    """Open ``builtin`` or a folder with all folders below it, in order of relative path.

    A folder has no splits: all of it is returned for either. Every file is decoded once here, to
    find the broken ones; those and images under 16 px on a side are left out with one warning.
    Hidden files and files without an image's suffix do not count. The seed decides the generated
    images of the built-in training set and nothing else.

    Raises:
        DataError: no such folder, no image that can serve, or a built-in photograph is missing.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}")
    return _builtin(split, seed) if spec == BUILTIN else _folder(spec)


def crop_pool(images: ImageSet, count: int, size: int, seed: int) -> Image8:
    """Random crops, uint8 [count, 3, size, size], half of them mirrored left to right.

    Each pixel of the set is as likely as any other: images are drawn in proportion to their areas.
    An image smaller than the crop is extended by reflection, downwards and to the right.
    """
    if count < 1 or size < 1:
        raise DataError(f"{count} crops of {size} px: both must be at least 1")
    rng = _generator(seed, "crops")
    areas = np.array([height * width for height, width in images.sizes], np.float64)
    chosen = rng.choice(len(areas), count, p=areas / areas.sum())
    places = rng.random((count, 3))
    pool = np.empty((count, 3, size, size), np.uint8)
    for index in np.unique(chosen):
        image = _at_least(images.images[index], size)
        for slot in np.flatnonzero(chosen == index):
            pool[slot] = _crop(image, size, *places[slot]).transpose(2, 0, 1)
    return pool


def to_tensor(image: Image8) -> torch.Tensor:
    """Float tensor [1, 3, H, W] in [0, 1] from uint8 [H, W, 3]."""
    planes = np.array(image.transpose(2, 0, 1), order="C")
    return torch.from_numpy(planes).unsqueeze(0).float() / 255


def to_image(tensor: torch.Tensor) -> Image8:
    """uint8 [H, W, 3] from a tensor [1, 3, H, W]: rounded, and clamped to [0, 1] first."""
    levels = (tensor.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return levels.squeeze(0).permute(1, 2, 0).contiguous().cpu().numpy()


def to_device(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """A tensor of the host on the device; a GPU fetches it by itself while the host goes on."""
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def derived_seed(seed: int, *keys: str | int) -> int:
    """A seed in [0, 2^32) for one purpose, the same in every process: sha256 of seed and keys.

    32 bits, because NumPy's legacy generator, which samplers still use, takes no more.
    """
    text = json.dumps([seed, *keys])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _generator(seed: int, *keys: str | int) -> np.random.Generator:
    # PCG64 by name: default_rng may become another generator in a later NumPy.
    sequence = np.random.SeedSequence(derived_seed(seed, *keys))
    return np.random.Generator(np.random.PCG64(sequence))


def _builtin(split: str, seed: int) -> ImageSet:
    names, images, digests = [], [], []
    for index in range(DEAD_LEAVES_COUNT if split == "train" else 0):
        image = dead_leaves(DEAD_LEAVES_SIZE_PX, _generator(seed, "dead leaves", index))
        names.append(f"dead-leaves/{index:02d}")
        images.append(image)
        digests.append(_digest(image.tobytes()))
    for name in PHOTOGRAPHS[split]:
        data = photograph(name)
        names.append(name)
        images.append(_centre(_decode(data)))
        # The file, not its pixels: JPEG decoders may differ by a level.
        digests.append(_digest(data + repr(CENTRE_PX).encode()))
    sizes = tuple((image.shape[0], image.shape[1]) for image in images)
    fingerprint = _fingerprint(zip(names, digests, strict=True))
    return ImageSet(f"{BUILTIN}/{split}", images, tuple(names), sizes, fingerprint)


def photograph(name: str) -> bytes:
    """The file of one photograph, named ``distribution/file``, out of the installed wheel.

    Raises:
        DataError: the distribution, or the file in it, is missing.
    """
    distribution, _, file = name.partition("/")
    module, _, folder = PHOTOGRAPH_FOLDERS[distribution].partition("/")
    spec = importlib.util.find_spec(module)  # finds the folder without importing the package
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root, folder, file)
        if path.is_file():
            return path.read_bytes()
    raise DataError(
        f"the built-in images need {file}, which the installed {distribution} lacks: "
        f"reinstall {distribution} from its wheel, or name a folder of images"
    )


def _centre(image: Image8) -> Image8:
    """The middle of an image, at most 512x768, so that evaluation stays quick."""
    top, left = (max(0, image.shape[axis] - CENTRE_PX[axis]) // 2 for axis in (0, 1))
    return image[top : top + CENTRE_PX[0], left : left + CENTRE_PX[1]]


@dataclass(frozen=True)
class _FolderImages(Sequence[Image8]):
    """A folder's images, each decoded when asked for."""

    root: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Image8: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image8]: ...
    def __getitem__(self, index: int | slice) -> Image8 | list[Image8]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path = self.root / self.names[index]
        try:
            return _decode(path.read_bytes())
        except Exception as error:
            raise DataError(
                f"{path} was readable when its folder was opened and no longer is ({error}): "
                "put it back, or start again"
            ) from error


def _folder(spec: str) -> ImageSet:
    root = Path(spec).expanduser()
    paths = _image_paths(spec, root)
    names = [path.relative_to(root).as_posix() for path in paths]
    with ThreadPoolExecutor(cores()) as threads:  # Pillow and hashlib release the GIL
        checked = dict(zip(names, threads.map(_check, paths), strict=True))
    good = {name: result for name, result in checked.items() if not isinstance(result, str)}
    bad = {name: result for name, result in checked.items() if isinstance(result, str)}
    reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(Counter(bad.values()).items()))
    if not good:
        raise DataError(
            f"{root}: none of its {len(bad)} image files can serve ({reasons}): put readable "
            f"images of at least {SIDE_MIN_PX} px a side there, or use {BUILTIN!r}"
        )
    if bad:
        first = next(iter(bad))
        logger.warning(
            "%s: %d of %d image files skipped: %s; the first is %s",
            *(root, len(bad), len(checked), reasons, first),
        )
    return ImageSet(
        name=str(root),
        images=_FolderImages(root, tuple(good)),
        names=tuple(good),
        sizes=tuple(size for _, size in good.values()),
        fingerprint=_fingerprint((name, digest) for name, (digest, _) in good.items()),
        skipped=len(bad),
    )


def _image_paths(spec: str, root: Path) -> list[Path]:
    """Every visible file below root with an image's suffix, sorted by relative path."""
    if not spec or not root.is_dir():
        kind = "is a file, not a folder" if root.is_file() else "is no folder"
        raise DataError(f"{spec!r} {kind}: images come from a folder or from {BUILTIN!r}")
    paths = []
    for folder, inner, files in os.walk(root, onerror=_refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        visible = (Path(folder, name) for name in files if not name.startswith("."))
        paths += [path for path in visible if path.suffix.lower() in _suffixes()]
    if not paths:
        raise DataError(
            f"{root}: no image files in it or below it (PNG, JPEG, WebP and the like count, by "
            f"suffix): put images there, or use {BUILTIN!r}"
        )
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def _refuse(error: OSError) -> NoReturn:
    # os.walk would pass over it, and the set would silently be another one.
    raise DataError(f"{error.filename} cannot be listed ({error.strerror}): allow it or move it")


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has; others, some of which start programs, stay closed."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def _suffixes() -> frozenset[str]:
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in _formats())


def _check(path: Path) -> tuple[str, tuple[int, int]] | str:
    """Digest and (height, width) of an image file, or why it cannot serve."""
    try:
        data = path.read_bytes()
        height, width, _ = _decode(data).shape
    except Exception:  # what a broken file raises depends on its format
        return "unreadable"
    if min(height, width) < SIDE_MIN_PX:
        return f"under {SIDE_MIN_PX} px on a side"
    return _digest(data), (height, width)


def _decode(data: bytes) -> Image8:
    """The image of a file's bytes, by the rules at the top of this module."""
    with Image.open(BytesIO(data), formats=_formats()) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        high = np.asarray(image).astype(np.int64).clip(0, 2**16 - 1) >> 8
        return np.repeat(high.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _fingerprint(digests: Iterable[tuple[str, str]]) -> str:
    whole = hashlib.sha256()
    for name, digest in digests:
        whole.update(f"{name}\0{digest}".encode(errors="surrogateescape"))
    return whole.hexdigest()


def _at_least(image: Image8, size: int) -> Image8:
    height, width, _ = image.shape
    lack = ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0))
    return np.pad(image, lack, mode="reflect")


def _crop(image: Image8, size: int, down: float, across: float, mirror: float) -> Image8:
    """The crop at fractions [0, 1) of the places there are, mirrored for half of the draws."""
    top = int(down * (image.shape[0] - size + 1))
    left = int(across * (image.shape[1] - size + 1))
    patch = image[top : top + size, left : left + size]
    return patch[:, ::-1] if mirror < 0.5 else patch
