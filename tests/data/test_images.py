"""Images are read one way, sets are told apart, and every random choice follows from its seed."""

import hashlib
import json
import logging
import os
import resource
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import GAMMA, near, profile, srgb_of_adobe, to_srgb
from PIL import Image

from nas_kd.cores import cores
from nas_kd.data import images as data
from nas_kd.data.dead_leaves import dead_leaves
from nas_kd.errors import DataError
from nas_kd.seeds import derived_seed


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def image_set(*images):
    sizes = tuple((image.shape[0], image.shape[1]) for image in images)
    names = tuple(str(i) for i in range(len(images)))
    return data.ImageSet("fake", list(images), names, sizes, "fake")


def saved(path: Path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path, **options)
    return path


def read(path: Path):
    return data.open_images(str(path.parent), "eval").images[0]


@pytest.fixture(scope="module")
def builtin():
    return {split: data.open_images("builtin", split) for split in data.SPLITS}


def filled(folder):
    """Two good images, one of them below, beside files that are none of ours."""
    saved(folder / "b.png", noise(40, 50, 1))
    saved(folder / "a" / "c.webp", noise(30, 20, 2), lossless=True)
    saved(folder / ".thumbs" / "t.png", noise(32, 32))
    (folder / "._b.png").write_text("what another system leaves behind")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def folder(tmp_path):
    return filled(tmp_path)


ELSEWHERE = """
import hashlib, json, sys
import numpy as np
from nas_kd.cores import cores
from nas_kd.data import images as data
from nas_kd.data.dead_leaves import dead_leaves
from nas_kd.seeds import derived_seed
images = data.open_images(sys.argv[1], "train")
crops = data.crop_pool(images, 9, 24, seed=3)
leaves = dead_leaves(48, np.random.Generator(np.random.PCG64(5)))
print(json.dumps({
    "fingerprint": images.fingerprint,
    "crops": hashlib.sha256(crops.tobytes()).hexdigest(),
    "leaves": hashlib.sha256(leaves.tobytes()).hexdigest(),
    "seed": derived_seed(1, "a", 2),
}))
"""


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """Another process at work on a folder; started first, for it loads torch while others run."""
    folder = filled(tmp_path_factory.mktemp("elsewhere"))
    # Another hash seed, so that nothing that leans on hash() passes.
    environment = {"PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, str(folder)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield folder, process


# Folders


def test_a_folder_is_read_whole_and_in_order(folder, caplog):
    images = data.open_images(str(folder), "train")
    assert images.names == ("a/c.webp", "b.png")
    assert images.sizes == ((30, 20), (40, 50))
    assert (len(images), images.skipped, caplog.records) == (2, 0, [])
    for image, expected in zip(images.images, (noise(30, 20, 2), noise(40, 50, 1)), strict=True):
        np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(images.images[-1:][0], noise(40, 50, 1))


def test_files_that_cannot_serve_are_counted_in_one_warning(folder, caplog):
    whole = saved(folder / "cut.jpg", noise(64, 64)).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not a PNG")
    (folder / "empty.webp").touch()
    saved(folder / "small.png", noise(15, 200))
    saved(folder / "least.png", noise(16, 200))
    with caplog.at_level(logging.WARNING, logger="nas_kd"):
        images = data.open_images(str(folder), "train")
    assert images.names == ("a/c.webp", "b.png", "least.png")
    assert images.skipped == 4
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: 3 taken, 4 left out: 1 damaged, 2 in no format known here, "
        "1 under 16 px on a side; the first is cut.jpg"
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is no folder"),
        (lambda path: path.touch(), "is a file, not a folder"),
        (lambda path: path.mkdir(), "no image files"),
        (lambda path: saved(path / "x.png", noise(8, 8)), "no picture can serve, 1 left out"),
    ],
    ids=["missing", "file", "empty", "all bad"],
)
def test_a_folder_that_cannot_serve_is_named(tmp_path, make, message):
    make(tmp_path / "pictures")
    with pytest.raises(DataError, match=message) as caught:
        data.open_images(str(tmp_path / "pictures"), "train")
    assert str(tmp_path / "pictures") in str(caught.value)
    assert "builtin" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_name_is_not_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match="'' is no folder"):
        data.open_images("", "train")


def test_an_unknown_split_is_refused(folder):
    with pytest.raises(DataError, match="'test' is unknown: choose one of train, eval"):
        data.open_images(str(folder), "test")


def test_a_file_that_vanishes_after_opening_is_named(folder):
    images = data.open_images(str(folder), "train")
    (folder / "b.png").unlink()
    with pytest.raises(DataError, match=r"b\.png was readable"):
        images.images[1]


def test_the_fingerprint_follows_contents_and_names_but_not_the_place(folder, tmp_path_factory):
    def fingerprint(root):
        return data.open_images(str(root), "train").fingerprint

    first = fingerprint(folder)
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    assert fingerprint(moved) == first
    (moved / "b.png").rename(moved / "d.png")
    renamed = fingerprint(moved)
    pixel = noise(40, 50, 1)
    pixel[39, 49, 2] ^= 1
    saved(moved / "d.png", pixel)
    assert len({first, renamed, fingerprint(moved)}) == 3


# One way of reading


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: np.rot90(x, 2)),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved(tmp_path / "x.png", noise(20, 30), exif=exif)
    images = data.open_images(str(tmp_path), "eval")
    np.testing.assert_array_equal(images.images[0], upright(noise(20, 30)))
    assert images.sizes[0] == images.images[0].shape[:2]


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = noise(20, 30)[..., 0]
    np.testing.assert_array_equal(read(saved(tmp_path / "x.png", grey)), np.stack([grey] * 3, -1))


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path):
    grey = np.arange(0, 2**16, 64, dtype=np.uint16).reshape(32, 32)
    np.testing.assert_array_equal(read(saved(tmp_path / "x.png", grey))[..., 1], grey >> 8)


def test_a_palette_becomes_its_colours(tmp_path):
    picture = Image.fromarray(noise(20, 30)).quantize(16)
    expected = np.array(picture.getpalette()).reshape(-1, 3)[np.array(picture)]
    np.testing.assert_array_equal(read(saved(tmp_path / "x.png", picture)), expected)


def test_transparency_is_laid_over_white(tmp_path):
    colour, alpha = noise(20, 30), noise(20, 30, 1)[..., :1]
    alpha[:5], alpha[5:10] = 0, 255
    saved(tmp_path / "x.png", np.concatenate([colour, alpha], axis=2))
    expected = 255 - (255 - colour.astype(float)) * alpha / 255
    image = read(tmp_path / "x.png")
    assert np.abs(image - expected).max() <= 1
    np.testing.assert_array_equal(image[:5], 255)
    np.testing.assert_array_equal(image[5:10], colour[5:10])


def test_a_transparent_palette_entry_is_laid_over_white(tmp_path):
    picture = Image.fromarray(noise(20, 30)).quantize(16)
    image = read(saved(tmp_path / "x.png", picture, transparency=3))
    np.testing.assert_array_equal(image[np.array(picture) == 3], 255)


def test_a_wide_profile_is_converted_and_tells_the_set_from_what_it_was(tmp_path):
    plain = saved(tmp_path / "a" / "x.png", noise(20, 30)).parent
    wide = saved(tmp_path / "b" / "x.png", noise(20, 30), icc_profile=profile()).parent
    images = data.open_images(str(wide), "eval")
    assert near(images.images[0], srgb_of_adobe(noise(20, 30)))
    content = hashlib.sha256((wide / "x.png").read_bytes()).hexdigest()
    assert images.fingerprint != data._fingerprint([("x.png", content)])  # as before profiles
    content = hashlib.sha256((plain / "x.png").read_bytes()).hexdigest()
    unchanged = data.open_images(str(plain), "eval").fingerprint
    assert unchanged == data._fingerprint([("x.png", content)])


def test_sixteen_bit_grey_is_converted_by_its_profile(tmp_path):
    grey = np.arange(0, 2**16, 64, dtype=np.uint16).reshape(32, 32)
    image = read(saved(tmp_path / "x.png", grey, icc_profile=profile(())))
    light = (np.stack([grey >> 8] * 3, -1) / 255) ** GAMMA
    assert near(image, 255 * to_srgb(light))


def test_profiles_that_cannot_be_used_are_told_in_one_warning(tmp_path, caplog):
    for name in ("a.png", "b.png"):
        saved(tmp_path / name, noise(20, 30), icc_profile=b"no profile")
    np.testing.assert_array_equal(read(tmp_path / "a.png"), noise(20, 30))
    (record,) = caplog.records
    assert "a.png (and 1 more): its colour profile cannot be used" in record.getMessage()


def test_built_in_photographs_are_taken_as_stored(builtin):
    stored = np.array(Image.open(BytesIO(data.photograph("scikit-image/rocket.jpg"))))
    rocket = builtin["eval"].images[builtin["eval"].names.index("scikit-image/rocket.jpg")]
    np.testing.assert_array_equal(rocket, stored)


def test_a_phones_picture_and_one_without_its_end_marker_are_taken(tmp_path):
    phone = {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (20, 20))]}
    saved(tmp_path / "a.jpg", noise(20, 30), **phone)
    endless = saved(tmp_path / "b.jpg", noise(20, 30))
    endless.write_bytes(endless.read_bytes()[:-2])
    images = data.open_images(str(tmp_path), "eval")
    assert (images.names, images.skipped) == (("a.jpg", "b.jpg"), 0)


def test_linked_folders_count_and_a_link_that_leads_nowhere_is_told(tmp_path, caplog):
    saved(tmp_path / "set" / "a.png", noise(20, 30))
    saved(tmp_path / "elsewhere" / "b.png", noise(30, 20))
    (tmp_path / "set" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "gone").symlink_to(tmp_path / "nowhere")
    images = data.open_images(str(tmp_path / "set"), "eval")
    assert (images.names, images.skipped) == (("a.png", "more/b.png"), 1)
    assert "2 taken, 1 left out: 1 a link that leads nowhere; the first is gone" in (caplog.text)


def test_an_image_survives_the_way_to_a_tensor_and_back():
    image = noise(20, 30)
    tensor = data.to_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((1, 3, 20, 30), torch.float32)
    assert tensor[0, 2, 7, 11].item() == pytest.approx(image[7, 11, 2] / 255)
    np.testing.assert_array_equal(data.to_image(tensor), image)


def test_a_tensor_is_rounded_and_clamped():
    values = torch.tensor([-0.5, 0.4 / 255, 0.6 / 255, 254.6 / 255, 2.0])
    image = data.to_image(values.expand(1, 3, 1, 5))
    assert image.dtype == np.uint8
    assert image[0, :, 0].tolist() == [0, 0, 1, 255, 255]


# Crops


def coordinates(height, width):
    """An image whose every pixel tells its own row and column."""
    rows, cols = np.indices((height, width))
    return np.stack([rows, cols, np.full_like(rows, 7)], axis=2).astype(np.uint8)


def test_every_crop_is_a_window_of_the_image_or_its_mirror():
    image = coordinates(40, 60)
    pool = data.crop_pool(image_set(image), 200, 16, seed=0)
    assert (pool.shape, pool.dtype) == ((200, 3, 16, 16), np.uint8)
    places, mirrored = set(), 0
    for crop in pool.transpose(0, 2, 3, 1):
        flipped = crop[0, 0, 1] > crop[0, 1, 1]
        window = crop[:, ::-1] if flipped else crop
        top, left = int(window[0, 0, 0]), int(window[0, 0, 1])
        np.testing.assert_array_equal(window, image[top : top + 16, left : left + 16])
        places.add((top, left))
        mirrored += flipped
    tops, lefts = zip(*places, strict=True)
    assert (min(tops), max(tops)) == (0, 24)
    assert min(lefts) <= 2
    assert max(lefts) >= 42
    assert 70 < mirrored < 130


def test_a_crop_as_large_as_its_image_is_that_image():
    image = coordinates(24, 24)
    for crop in data.crop_pool(image_set(image), 8, 24, seed=1).transpose(0, 2, 3, 1):
        assert np.array_equal(crop, image) or np.array_equal(crop, image[:, ::-1])


def test_a_small_image_is_extended_by_reflection():
    image = coordinates(20, 40)
    crop = data.crop_pool(image_set(image), 1, 64, seed=0)[0].transpose(1, 2, 0)
    if crop[0, 0, 1] != 0:
        crop = crop[:, ::-1]
    bounce = [*range(20), *range(18, -1, -1), *range(1, 20), *range(18, 11, -1)]
    np.testing.assert_array_equal(crop[:, 0, 0], bounce[:64])
    np.testing.assert_array_equal(crop[0, :, 1], [*range(40), *range(38, 14, -1)])


def test_images_are_drawn_in_proportion_to_their_areas():
    small, large = np.zeros((20, 20, 3), np.uint8), np.full((40, 30, 3), 1, np.uint8)
    pool = data.crop_pool(image_set(small, large), 2000, 4, seed=0)
    # Binomial with p = 0.75 and a standard deviation of 0.0097.
    assert pool[:, 0, 0, 0].mean() == pytest.approx(0.75, abs=0.04)


def test_crops_follow_their_seed():
    images = image_set(noise(40, 60), noise(50, 30, 1))
    first, again, other = (data.crop_pool(images, 6, 16, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("count", "size"), [(0, 16), (4, 0)])
def test_a_pool_of_nothing_is_refused(count, size):
    with pytest.raises(DataError, match="at least 1"):
        data.crop_pool(image_set(noise(20, 20)), count, size, seed=0)


# The built-in set


def test_built_in_splits_share_no_image(builtin):
    train, evaluation = builtin["train"], builtin["eval"]
    assert (len(train), len(evaluation)) == (54, 4)
    contents = [image.tobytes() for split in builtin.values() for image in split.images]
    names = train.names + evaluation.names
    assert len(set(names)) == len(set(contents)) == 58
    # The right view of the motorcycle is the left one's scene: neither may be evaluated on.
    assert not any("motorcycle" in name for name in evaluation.names)
    assert train.fingerprint != evaluation.fingerprint


def test_built_in_images_are_photographs_size(builtin):
    for split in builtin.values():
        for image, size in zip(split.images, split.sizes, strict=True):
            assert image.dtype == np.uint8
            assert image.shape == (*size, 3)
            assert size[0] <= 512
            assert size[1] <= 768


def test_a_large_photograph_is_cut_to_its_centre(builtin):
    name = "scikit-image/retina.jpg"
    whole = np.array(Image.open(BytesIO(data.photograph(name))))
    cut = builtin["train"].images[builtin["train"].names.index(name)]
    assert whole.shape == (1411, 1411, 3)
    np.testing.assert_array_equal(cut, whole[449:961, 321:1089])


def test_a_photograph_missing_from_its_wheel_is_named():
    with pytest.raises(DataError, match=r"need nonesuch\.png, which the installed scikit-image"):
        data.photograph("scikit-image/nonesuch.png")


def luminance_slope(image):
    """The exponent b of the power spectrum f^b, by least squares over rings."""
    y = image.astype(float).mean(axis=2)
    window = np.outer(np.hanning(len(y)), np.hanning(len(y)))
    power = np.abs(np.fft.fft2((y - y.mean()) * window)) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(len(y))] * 2))
    bounds = np.geomspace(4 / len(y), 0.45, 12)
    rings = [
        power[(frequency >= a) & (frequency < b)].mean()
        for a, b in zip(bounds[:-1], bounds[1:], strict=True)
    ]
    return np.polyfit(np.log(np.sqrt(bounds[:-1] * bounds[1:])), np.log(rings), 1)[0]


def test_dead_leaves_have_the_statistics_of_photographs(builtin):
    leaves = builtin["train"].images[: data.DEAD_LEAVES_COUNT]
    steps = [np.diff(image.astype(float).mean(axis=2), axis=1).ravel() for image in leaves]
    kurtosis = [((s - s.mean()) ** 4).mean() / s.var() ** 2 for s in steps]
    # The ten photographs: slopes -1.7 to -3.4 with a median of -2.7, steps of 1 to 14 levels
    # with a median of 6.6, kurtosis 5 to 115 with a median of 23 (a Gaussian has 3).
    assert -3.1 < np.median([luminance_slope(image) for image in leaves]) < -2.3
    assert 4 < np.median([np.abs(s).mean() for s in steps]) < 10
    assert 10 < np.median(kurtosis) < 40


def test_dead_leaves_follow_their_seed():
    first, again, other = (
        dead_leaves(32, np.random.Generator(np.random.PCG64(seed))) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_another_process_sees_the_same_set_crops_leaves_and_seeds(elsewhere):
    folder, process = elsewhere
    images = data.open_images(str(folder), "train")
    crops = data.crop_pool(images, 9, 24, seed=3)
    leaves = dead_leaves(48, np.random.Generator(np.random.PCG64(5)))
    seen, _ = process.communicate()
    assert json.loads(seen) == {
        "fingerprint": images.fingerprint,
        "crops": hashlib.sha256(crops.tobytes()).hexdigest(),
        "leaves": hashlib.sha256(leaves.tobytes()).hexdigest(),
        "seed": derived_seed(1, "a", 2),
    }


def test_pictures_decoded_on_all_cores_come_in_their_order_and_are_counted(tmp_path: Path):
    for number in range(5):
        Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    heard = []
    images = data.open_images(str(tmp_path), "train", progress=lambda *n: heard.append(n))
    found = data.decoded(images, lambda *n: heard.append(n))
    assert [int(image[0, 0, 0]) for image in found] == [0, 1, 2, 3, 4]
    assert heard == 2 * [(n, 5) for n in range(1, 6)]


def test_many_pictures_are_read_with_few_files_open(tmp_path: Path):
    for number in range(40):
        Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd"))
    room = max(map(int, os.listdir("/proc/self/fd"))) + cores() + 8
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, before[1]))
    try:
        images = data.open_images(str(tmp_path), "train")
        found = [image.shape for image in data.decoded(images)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(found) == 40
    assert len(os.listdir("/proc/self/fd")) <= open_now
