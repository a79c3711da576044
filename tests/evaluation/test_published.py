"""Published curves: their BD-rates are the table's, and nothing but Kodak passes for Kodak."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compressai.utils.bench.codecs import JPEG
from PIL import Image
from typer.testing import CliRunner

from nas_kd.cli.main import app
from nas_kd.data.images import BUILTIN, ImageSet, open_images
from nas_kd.errors import UsageError
from nas_kd.evaluation.bd_rate import bd_rate
from nas_kd.evaluation.classical import classical_point, from_file, to_file
from nas_kd.evaluation.published import (
    Proof,
    differs,
    is_kodak,
    kodak,
    published,
    require_kodak,
    split_names,
)
from nas_kd.places import TEACHERS

ORACLE = json.loads((Path(__file__).parents[1] / "expected" / "kodak_bd.json").read_text())


def against(anchor: str, test: str):
    """Over the PSNR that both curves cover."""
    a, b = published()[anchor].curve, published()[test].curve
    shared = max(a.psnr_db[0], b.psnr_db[0]), min(a.psnr_db[-1], b.psnr_db[-1])
    return bd_rate(a, b, shared).value


@pytest.mark.parametrize("test", ORACLE["bd_rate_percent"])
def test_shipped_curves_give_the_tables_bd_rates(test):
    for anchor, percent in ORACLE["bd_rate_percent"][test].items():
        assert round(against(anchor, test), 2) == percent


@pytest.mark.parametrize(
    ("test", "anchor", "percent"),
    [
        # arXiv 2304.06244 and 2203.10886, as others converted them: other interpolations, other intervals.
        ("shallow-ntc", "vtm", 34.7),
        ("shallow-ntc", "bmshj2018-hyperprior", 1.0),
        ("shallow-ntc-sga", "bmshj2018-hyperprior", -8.8),
        ("elic", "vtm", -7.0),
        ("elic", "bmshj2018-hyperprior", -29.3),
        ("bpg", "vtm", 22),
        ("av1", "vtm", 16),
        ("webp-published", "vtm", 79),
        ("jpeg-published", "vtm", 209),
    ],
)
def test_what_was_entered_by_hand_lies_where_its_papers_say(test, anchor, percent):
    assert against(anchor, test) == pytest.approx(percent, abs=0.6)


def test_every_curve_names_its_source_and_its_kind_of_rate():
    for name, found in published().items():
        assert len(found.curve.bpp) == len(found.curve.psnr_db) >= 6, name
        assert "commit" in found.source
        assert found.rate in ("bpp", "bpp_est", "unknown")


def test_the_proof_has_jpegs_ends_and_middle():
    assert list(kodak().jpeg) == [5, 25, 50, 75, 95]
    assert kodak().jpeg[50] == (0.906001, 32.058653)
    assert kodak().pictures * 512 * 768 == 9437184


# ------------------------------------------------------------------ what passes for a set


def made(pictures: list[np.ndarray], name: str = "made") -> ImageSet:
    sizes = tuple(p.shape[:2] for p in pictures)
    return ImageSet(name, pictures, tuple(map(str, range(len(pictures)))), sizes, "f")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    whole = open_images(BUILTIN, "eval").images
    return [np.ascontiguousarray(p[60:124, 40:136]) for p in whole]


@pytest.fixture(scope="module")
def proof(pictures, tmp_path_factory) -> Proof:
    """As CompressAI's own benchmark measures these pictures from their files."""
    folder, codec = tmp_path_factory.mktemp("png"), JPEG(None)
    files = [folder / f"{i}.png" for i in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    jpeg = {}
    for quality in kodak().jpeg:
        found = [codec.run(str(f), quality, ["psnr-rgb"]) for f in files]
        bpp, psnr_db = (np.mean([one[key] for one in found]) for key in ("bpp", "psnr-rgb"))
        jpeg[quality] = float(bpp), float(psnr_db)
    return Proof("Made", len(pictures), frozenset({(64, 96)}), jpeg)


def test_our_jpeg_is_the_one_that_compressai_published(pictures, proof):
    for quality, point in proof.jpeg.items():
        found = classical_point(made(pictures), "JPEG", {"quality": quality})
        assert found == pytest.approx(point, abs=1e-4)


def test_the_same_pixels_pass_under_other_names_and_in_another_order(pictures, proof):
    assert differs(made(pictures), proof) is None
    turned = replace(made(pictures[::-1]), names=("d", "c", "b", "a"))
    assert differs(turned, proof) is None


def test_another_picture_among_them_is_found(pictures, proof):
    other = pictures[0][:, ::-1].copy()
    assert "is another set: JPEG at quality" in differs(made([other, *pictures[1:]]), proof)


def test_pictures_that_were_compressed_once_are_other_pictures(pictures, proof):
    once = [from_file(to_file(p, "JPEG", {"quality": 98, "subsampling": 0})) for p in pictures]
    assert "is another set" in differs(made(once), proof)
    brighter = [np.clip(p.astype(int) + 1, 0, 255).astype(np.uint8) for p in pictures]
    assert "is another set" in differs(made(brighter), proof)


def test_count_and_sizes_are_looked_at_first(pictures, proof):
    assert differs(made(pictures[1:]), proof) == "has 3 pictures, not 4"
    cut = made([pictures[0][:32], *pictures[1:]])
    assert differs(cut, proof) == "has a picture of 96x32, which none of Made's is"


# ------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def named_kodak(tmp_path_factory) -> Path:
    """Kodak's names, number and sizes, and other pictures."""
    folder = tmp_path_factory.mktemp("kodak")
    grain = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    for i in range(1, 25):
        picture = Image.fromarray(np.roll(grain, i, 0)).resize((768, 512))
        picture.save(folder / f"kodim{i:02d}.png", compress_level=1)
    return folder


@pytest.mark.thorough
def test_a_folder_with_kodaks_names_and_other_pictures_is_refused(named_kodak):
    assert not is_kodak(open_images(str(named_kodak), "eval"))
    command = ["eval", str(TEACHERS / "mini"), "--data", str(named_kodak), "--versus", "vtm,jpeg"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UsageError)
    said = str(done.exception)
    assert said.startswith("vtm: published on Kodak's pictures, and ")
    assert "is another set: JPEG at quality 5 takes" in said
    assert "\n" not in said


def test_codecs_that_are_measured_here_need_no_proof():
    require_kodak(open_images(BUILTIN, "eval"), [])
    with pytest.raises(UsageError, match="has 4 pictures, not 24; judge on Kodak"):
        require_kodak(open_images(BUILTIN, "eval"), ["vtm"])


def test_names_are_told_apart_and_unknown_ones_refused():
    assert split_names("jpeg, vtm,webp,elic") == (["jpeg", "webp"], ["vtm", "elic"])
    with pytest.raises(UsageError, match="'bmp' is unknown: choose from jpeg, .*; on Kodak's"):
        split_names("bmp")
    with pytest.raises(UsageError, match="'prim' cannot be compared with: its paper"):
        split_names("prim")


def test_the_pages_table_is_the_shipped_curves():
    page = (Path(__file__).parents[2] / "docs" / "published.md").read_text()
    kinds = {"bpp": "real bitstreams", "bpp_est": "estimates", "unknown": "not said"}
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert rows == [
        [
            f"`{name}`",
            *(f"{against(anchor, name):+.2f}" for anchor in ("bmshj2018-hyperprior", "vtm")),
            kinds[found.rate],
            found.source,
        ]
        for name, found in published().items()
    ]
