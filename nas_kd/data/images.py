"""Images: folders, the built-in set and crops.

An image is a uint8 array [H, W, 3] in RGB. What is read becomes that in one way: EXIF orientation
is applied, transparency is laid over white, grey and palette become RGB, 16-bit keeps its high
byte, a file of several frames gives its first, and colours become those of sRGB by the file's profile.

The built-in set downloads nothing. It has dead-leaves images (nas_kd.data.dead_leaves) and the photographs
that the wheels of scikit-image and scikit-learn carry, cut to their centre where they exceed
512x768 (height x width):

    train  48 dead-leaves images of 256x256, which the seed decides, and astronaut, flower,
           hubble_deep_field, ihc, motorcycle_left, retina
    eval   chelsea, china, coffee, rocket: in no training set

They are taken as stored: rocket's profile (Adobe RGB) is not applied, so that figures measured on the
built-in set stay comparable.
"""

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from nas_kd.cores import cores
from nas_kd.data import picture_sets
from nas_kd.data.dead_leaves import dead_leaves
from nas_kd.data.fetch import supply
from nas_kd.data.image_file import Image8, in_srgb, opened, suffixes, unread_suffixes
from nas_kd.data.picture_files import UNUSABLE, Below, below, told_left_out
from nas_kd.errors import DataError
from nas_kd.places import BUILTIN
from nas_kd.seeds import derived_generator

logger = logging.getLogger("nas_kd")

Progress = Callable[[int, int], None]
"""Hears how many pictures are done, and how many there are."""

SPLITS = ("train", "eval")
SIDE_MIN_PX = 16
HELD_BYTES = 2**29
"""Of decoded pictures that a process keeps."""
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
        skipped: image files that were left out.
    """

    name: str
    images: Sequence[Image8]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    fingerprint: str
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.images)


def unheard(done: int, of: int) -> None:
    """Progress that nobody hears."""


def held(images: ImageSet) -> ImageSet:
    """The set with its pictures decoded now, once, where they take no more than HELD_BYTES; else as it is."""
    if sum(3 * height * width for height, width in images.sizes) > HELD_BYTES:
        return images
    return replace(images, images=decoded(images))


def decoded(images: ImageSet, progress: Progress = unheard) -> list[Image8]:
    """All pictures of a set, decoded on all cores; ``progress`` hears (done, all) pictures."""
    found = []
    with ThreadPoolExecutor(cores()) as threads:  # Pillow releases the GIL
        for image in threads.map(images.images.__getitem__, range(len(images))):
            found.append(image)
            progress(len(found), len(images))
    return found


def open_images(spec: str, split: str, seed: int = 0, progress: Progress = unheard) -> ImageSet:
    """Open ``builtin``, a set by name, or a folder with all folders below it, in order of relative path.

    A set (nas_kd.picture_sets) that is not here is fetched, where the user agrees; a folder of its name comes first.
    Neither has splits: all of it is returned for either. Every file is decoded once here, to
    find the broken ones; those and images under 16 px on a side are left out with one warning.
    Linked folders count, each once; files without an image's suffix do not. The seed decides the generated
    images of the built-in training set and nothing else. ``progress`` hears (done, all) of a folder's files.

    Raises:
        DataError: no such folder, no image that can serve, or a built-in photograph is missing.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}")
    if spec == BUILTIN:
        return _builtin(split, seed)
    one = picture_sets.named(spec)
    return _folder(spec, progress) if one is None else _set(one, progress)


def reopened(
    spec: str,
    seed: int,
    names: tuple[str, ...],
    sizes: tuple[tuple[int, int], ...],
    fingerprint: str,
) -> ImageSet:
    """Training pictures as ``open_images`` found them before; no file is read until it is asked for."""
    one = picture_sets.named(spec)
    if spec == BUILTIN or (one is not None and picture_sets.order_of(one) is not None):
        return open_images(spec, "train", seed)  # a set that is not here is fetched
    images = _FolderImages(picture_sets.folder_of(spec), names)
    return ImageSet(spec, images, names, sizes, fingerprint)


def crop_pool(
    images: ImageSet, count: int, size: int, seed: int, first: int | None = None
) -> Image8:
    """Random crops, uint8 [count, 3, size, size], half of them mirrored left to right; the ``first`` ones alone.

    Each pixel of the set is as likely as any other: images are drawn in proportion to their areas.
    An image smaller than the crop is extended by reflection, downwards and to the right.
    """
    if count < 1 or size < 1:
        raise DataError(f"{count} crops of {size} px: both must be at least 1")
    rng = derived_generator(seed, "crops")
    areas = np.array([height * width for height, width in images.sizes], np.float64)
    chosen = rng.choice(len(areas), count, p=areas / areas.sum())[:first]
    places = rng.random((count, 3))
    pool = np.empty((len(chosen), 3, size, size), np.uint8)

    def cut(index: int) -> None:
        image = at_least(images.images[index], size)
        for slot in np.flatnonzero(chosen == index):
            pool[slot] = _crop(image, size, *places[slot]).transpose(2, 0, 1)

    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(cut, np.unique(chosen).tolist()))
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
    """A tensor on the device; a GPU fetches it from the host by itself while the host goes on."""
    if torch.device(device).type == tensor.device.type:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _builtin(split: str, seed: int) -> ImageSet:
    names, images, digests = [], [], []
    for index in range(DEAD_LEAVES_COUNT if split == "train" else 0):
        image = dead_leaves(DEAD_LEAVES_SIZE_PX, derived_generator(seed, "dead leaves", index))
        names.append(f"dead-leaves/{index:02d}")
        images.append(image)
        digests.append(_digest(image.tobytes()))
    for name in PHOTOGRAPHS[split]:
        data = photograph(name)
        names.append(name)
        images.append(_centre(_as_stored(data)))
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


def _set(one: picture_sets.PictureSet, progress: Progress) -> ImageSet:
    if (lacking := picture_sets.order_of(one)) is not None:
        supply([lacking])
    return replace(_folder(str(picture_sets.home() / one.name), progress), name=one.name)


def _folder(spec: str, progress: Progress) -> ImageSet:
    root = Path(spec).expanduser()
    here = pictures_below(spec, root)
    names = [path.relative_to(root).as_posix() for path in here.files]
    checked: dict[str, _Good | str] = {}
    with ThreadPoolExecutor(cores()) as threads:  # Pillow and hashlib release the GIL
        for name, result in zip(names, threads.map(_check, here.files), strict=True):
            checked[name] = result
            progress(len(checked), len(names))
    good = {name: result for name, result in checked.items() if isinstance(result, _Good)}
    bad = {name: result for name, result in checked.items() if isinstance(result, str)}
    left_out = bad | here.left_out
    if not good:
        raise DataError(
            f"{root}: no picture can serve, {told_left_out(left_out)}: put readable "
            f"images of at least {SIDE_MIN_PX} px a side there, or use {BUILTIN!r}"
        )
    _tell(root, good, left_out)
    return ImageSet(
        name=str(root),
        images=_FolderImages(root, tuple(good)),
        names=tuple(good),
        sizes=tuple(one.size for one in good.values()),
        fingerprint=_fingerprint((name, one.digest) for name, one in good.items()),
        skipped=len(left_out),
    )


def pictures_below(spec: str, root: Path) -> Below:
    """The picture files of a folder; raises DataError where there is none, or no folder."""
    if not spec or not root.is_dir():
        kind = "is a file, not a folder" if root.is_file() else "is no folder"
        known = ", ".join(picture_sets.known())
        raise DataError(
            f"{spec!r} {kind}: images come from a folder, from {BUILTIN!r} or from {known}"
        )
    here = below(root, suffixes(), unread_suffixes())
    if not here.files:
        aside = f" ({told_left_out(here.left_out)})" if here.left_out else ""
        raise DataError(
            f"{root}: no image files in it or below it{aside} (PNG, JPEG, WebP and the like count, "
            f"by suffix): put images there, or use {BUILTIN!r}"
        )
    return here


@dataclass(frozen=True)
class _Good:
    """Of an image file that can serve; ``unusable`` says what ails its colour profile."""

    digest: str
    size: tuple[int, int]
    unusable: str | None


def _tell(root: Path, good: dict[str, _Good], left_out: dict[str, str]) -> None:
    """One warning each of what was left out and of profiles that cannot be used."""
    if left_out:
        logger.warning("%s: %d taken, %s", root, len(good), told_left_out(left_out))
    odd = {name: one.unusable for name, one in good.items() if one.unusable is not None}
    for name, reason in list(odd.items())[:1]:
        more = f" (and {len(odd) - 1} more)" if odd.keys() - {name} else ""
        logger.warning(UNUSABLE, f"{root / name}{more}", reason)


def _check(path: Path) -> _Good | str:
    """What is to be known of an image file, or why it cannot serve."""
    try:
        data = path.read_bytes()
        stored = _eight_bits(opened(data))
        picture, unusable = in_srgb(stored)
        height, width, _ = _pixels(picture).shape
    except Exception as error:  # what a broken file raises depends on its format
        return _reason(error)
    if min(height, width) < SIDE_MIN_PX:
        return f"under {SIDE_MIN_PX} px on a side"
    # A file whose profile was passed over had the same bytes and other pixels.
    seen = data if picture is stored else data + b"sRGB"
    return _Good(_digest(seen), (height, width), unusable)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "in no format known here"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) if isinstance(error, DataError) else "damaged"


def _decode(data: bytes) -> Image8:
    """The image of a file's bytes, by the rules at the top of this module."""
    return _pixels(in_srgb(_eight_bits(opened(data)))[0])


def _as_stored(data: bytes) -> Image8:
    """The image of a file's bytes without its colour profile."""
    return _pixels(_eight_bits(opened(data)))


def _eight_bits(image: Image.Image) -> Image.Image:
    """The high byte of grey pixels of 16 bits."""
    if image.mode == "F":
        raise DataError("of floating-point pixels, which have no known range")
    if not image.mode.startswith("I"):
        return image
    high = np.asarray(image).astype(np.int64).clip(0, 2**16 - 1) >> 8
    grey = Image.fromarray(high.astype(np.uint8))
    grey.info = image.info
    return grey


def _pixels(image: Image.Image) -> Image8:
    """Over white where it is transparent; uint8 [H, W, 3]."""
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


def at_least(image: Image8, size: int) -> Image8:
    """An image smaller than ``size`` on a side is extended by reflection, downwards and to the right."""
    height, width, _ = image.shape
    if min(height, width) >= size:
        return image
    lack = ((0, max(0, size - height)), (0, max(0, size - width)), (0, 0))
    return np.pad(image, lack, mode="reflect")


def _crop(image: Image8, size: int, down: float, across: float, mirror: float) -> Image8:
    """The crop at fractions [0, 1) of the places there are, mirrored for half of the draws."""
    top = int(down * (image.shape[0] - size + 1))
    left = int(across * (image.shape[1] - size + 1))
    patch = image[top : top + size, left : left + size]
    return patch[:, ::-1] if mirror < 0.5 else patch
