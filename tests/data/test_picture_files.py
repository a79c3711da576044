import json
import os
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colours import near, profile, saved, srgb_of_adobe
from PIL import Image
from tiny_codec import ARCH, LMBDAS
from typer.testing import CliRunner, Result

from nas_kd.cli.main import app
from nas_kd.codec.bitstream import decode, encode, info
from nas_kd.codec.checkpoint import load_student, save_student
from nas_kd.codec.rate_control import file_of_bpp, file_of_psnr
from nas_kd.codec.student import Student
from nas_kd.data.image_file import suffixes, unread_suffixes
from nas_kd.data.images import to_tensor
from nas_kd.data.metrics import psnr_db
from nas_kd.data.picture_files import below, png, read_picture, require_writable, told_left_out
from nas_kd.errors import BitstreamError, DataError, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A KLT codec of the test's own picture: small, and better at higher levels."""
    path = tmp_path_factory.mktemp("student")
    codec = Student(replace(ARCH, M=24, entropy="checkerboard"), LMBDAS)
    codec.start_from(to_tensor(photo(320, 320)))
    save_student(codec, path)
    return path


@pytest.fixture(scope="module")
def student(folder: Path) -> Student:
    return load_student(folder)


def photo(height: int = 90, width: int = 70) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(rows / (9 + i)) * np.cos(columns / (7 + i)) for i in range(3)]
    return np.stack(waves, 2).astype(np.uint8)


def run(*words: object, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


def test_a_file_there_and_back(folder: Path, student: Student, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(photo()))
    there = run("compress", tmp_path / "a.png", tmp_path / "a.nkd", "--student", folder)
    assert there.exit_code == 0, there.output
    assert (tmp_path / "a.nkd").read_bytes() == encode(student, photo(), 3)
    back = run("decompress", tmp_path / "a.nkd", tmp_path / "b.png", "--student", folder)
    assert back.exit_code == 0, back.output
    decoded = read_picture((tmp_path / "b.png").read_bytes(), "b")
    assert np.array_equal(decoded, decode(student, (tmp_path / "a.nkd").read_bytes()))


def test_a_pipe_there_and_back(folder: Path, student: Student, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").mkdir()  # is not what - means
    there = run("compress", "-", "-", "--student", folder, "--level", 1.5, stdin=png(photo()))
    assert there.stdout_bytes == encode(student, photo(), 1.5)
    back = run("decompress", "-", "-", "--student", folder, stdin=there.stdout_bytes)
    decoded = read_picture(back.stdout_bytes, "b")
    assert np.array_equal(decoded, decode(student, there.stdout_bytes))


def test_a_folder_there_and_back(folder: Path, tmp_path: Path):
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    (source / "a.png").write_bytes(png(photo()))
    (source / "a.jpg").write_bytes(saved(Image.fromarray(photo(40, 50)), "JPEG"))
    (source / "deep" / "g.png").write_bytes(png(photo()[..., 0]))
    (source / "notes.txt").write_text("no picture")
    there = run("compress", source, tmp_path / "mid", "--student", folder)
    assert there.exit_code == 0, there.output
    back = run("decompress", tmp_path / "mid", tmp_path / "out", "--student", folder)
    assert back.exit_code == 0, back.output
    out = {str(p.relative_to(tmp_path / "out")): p for p in (tmp_path / "out").rglob("*.png")}
    assert set(out) == {"a.png", "a.jpg.png", "deep/g.png"}
    assert read_picture(out["deep/g.png"].read_bytes(), "g").shape == (90, 70)
    assert read_picture(out["a.jpg.png"].read_bytes(), "a").shape == (40, 50, 3)


def test_one_bad_file_of_a_folder_does_not_stop_the_others(folder: Path, tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.png").write_bytes(b"no picture")
    (source / "b.png").write_bytes(png(photo()))
    done = run("compress", source, tmp_path / "out", "--student", folder)
    assert isinstance(done.exception, UsageError)
    assert "1 of 2 files failed" in str(done.exception)
    assert f"the first: {source / 'a.png'}: " in str(done.exception)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.png.nkd"]


# --- nothing is lost --------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


@pytest.mark.parametrize("source", ["a.png", "link.png", "x/../a.png"])
def test_a_picture_is_not_replaced_by_its_own_coded_file(folder: Path, tmp_path, source):
    (tmp_path / "x").mkdir()
    (tmp_path / "a.png").write_bytes(png(photo()))
    (tmp_path / "link.png").symlink_to("a.png")
    before = tree(tmp_path)
    done = run("compress", tmp_path / source, tmp_path / "a.png", "--student", folder)
    assert (done.exit_code, isinstance(done.exception, UsageError)) == (1, True)
    assert "a.png: is there already; give another place, or --overwrite" in str(done.exception)
    assert tree(tmp_path) == before
    words = ("--student", folder, "--overwrite")
    assert run("compress", tmp_path / source, tmp_path / "a.png", *words).exit_code == 0
    assert tree(tmp_path)["a.png"].startswith(b"NKD1")


def test_one_folder_for_source_and_target_keeps_its_pictures(folder: Path, tmp_path: Path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(photo(20, 30)))
    there = run("compress", tmp_path, tmp_path, "--student", folder)
    assert there.exit_code == 0, there.output
    before = tree(tmp_path)
    assert sorted(before) == ["a.png", "a.png.nkd", "b.png", "b.png.nkd"]
    back = run("decompress", tmp_path, tmp_path, "--student", folder)
    assert "a.png (and 1 more of 2): is there already" in str(back.exception)
    assert tree(tmp_path) == before
    again = run("decompress", tmp_path, tmp_path, "--student", folder, "--overwrite")
    assert again.exit_code == 0
    assert tree(tmp_path)["a.png"] != before["a.png"]


def test_two_files_that_would_become_one_are_refused_before_anything_is_written(
    folder: Path, tmp_path: Path
):
    (tmp_path / "in").mkdir()
    for name in ("a.jpg.nkd", "a.jpg.png.nkd", "b.nkd"):
        (tmp_path / "in" / name).write_bytes(b"")
    done = run("decompress", tmp_path / "in", tmp_path / "out", "--student", folder)
    assert str(done.exception) == (
        f"{tmp_path / 'in' / 'a.jpg.nkd'} and {tmp_path / 'in' / 'a.jpg.png.nkd'}: "
        f"both would become {tmp_path / 'out' / 'a.jpg.png'}; rename one of them"
    )
    assert not (tmp_path / "out").exists()


def test_a_device_or_pipe_is_written_into_and_not_replaced(folder: Path, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(photo(20, 30)))
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    done = run("compress", tmp_path / "a.png", tmp_path / "pipe", "--student", folder)
    assert done.exit_code == 0, done.output
    assert os.read(reader, 4) == b"NKD1"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("compress", "a.png", "none/a.nkd"), "OUT none/a.nkd: cannot be written"),
        (("compress", "a.png", "x"), "OUT x: is a folder; give the name of a file"),
        (("compress", "x", "a.png"), "OUT a.png: is a file; give the name of a folder"),
        (("compress", "x", "out"), "x: no file in it or below it that can be taken"),
        (("compress", "none.png", "b.nkd"), "none.png: cannot be read .no such file"),
        (("decompress", "a.nkd", "none/a.png"), "a.nkd: cannot be read .no such file"),
        (("distill", "--arch", "a.toml", "--out", "a.png"), "--out a.png: is a file"),
        (("teacher", "train", "--arch", "a.toml", "--out", "a.png/x"), "--out a.png/x: cannot be"),
    ],
)
def test_what_cannot_be_read_or_written_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch, words: tuple[str, ...], says: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(png(photo(20, 30)))
    (tmp_path / "x").mkdir()
    student = ("--student", "none") if words[0] in ("compress", "decompress") else ()
    done = run(*words, *student)
    assert isinstance(done.exception, UsageError)
    assert re.search(says, str(done.exception)), done.exception
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "x"]


def test_files_are_looked_at_without_torch():
    code = "import sys, nas_kd.cli.main, nas_kd.data.picture_files; print(*{'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


# --- folders and links ------------------------------------------------------------------------


def test_links_are_followed_once_and_loops_end(tmp_path: Path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for home in (root / "deep", elsewhere / "more", root / ".thumbs"):
        home.mkdir(parents=True)
        (home / "p.png").touch()
    (root / "a.png").touch()
    (root / "linked").symlink_to(elsewhere)
    (root / "again").symlink_to(root / "deep")  # there already
    (root / "deep" / "up").symlink_to(root)  # a loop
    (elsewhere / "back").symlink_to(root)  # a loop by way of another
    (root / "b.png").symlink_to(elsewhere / "more" / "p.png")
    names = [str(p.relative_to(root)) for p in below(root, {".png"}).files]
    assert names == ["a.png", "b.png", "deep/p.png", "linked/more/p.png"]


@pytest.mark.thorough
def test_figures_say_of_how_many_pictures_they_are(folder: Path, tmp_path: Path, timed_briefly):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(photo(80, 70)))
    (tmp_path / "c.png").write_bytes(b"")
    for words in (("eval", folder), ("baselines", "--codecs", "jpeg")):
        said = run(*words, "--data", tmp_path).output
        assert f"{tmp_path}: 2 pictures, 1 left out" in said
        found = json.loads(run(*words, "--data", tmp_path, "--json").stdout)
        assert (len(found["images"]), found["left_out"]) == (2, 1)


def test_what_is_left_out_of_a_folder_is_counted_with_its_reason(tmp_path: Path):
    for name in ("a.png", "._a.png", ".b.png", "c.HEIC", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "gone").symlink_to("nowhere")
    here = below(tmp_path, suffixes(), unread_suffixes())
    assert [p.name for p in here.files] == ["a.png"]
    assert here.left_out == {
        ".b.png": "hidden",
        "c.HEIC": "in a format that is not read (.heic)",
        "gone": "a link that leads nowhere",
    }
    said = told_left_out(here.left_out)
    assert "3 left out: 1 a link that leads nowhere, 1 hidden, 1 in a format that is not" in said


def test_compressing_a_folder_takes_links_and_says_what_it_left_out(folder: Path, tmp_path: Path):
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for home in (source, elsewhere):
        home.mkdir()
        (home / "a.png").write_bytes(png(photo(20, 30)))
    (source / "more").symlink_to(elsewhere)
    (source / "._a.png").write_bytes(b"what macOS leaves")
    (source / "b.heic").touch()
    done = run("compress", source, tmp_path / "out", "--student", folder)
    assert done.exit_code == 0, done.output
    assert sorted(tree(tmp_path / "out")) == ["a.png.nkd", "more/a.png.nkd"]
    assert "2 taken, 1 left out: 1 in a format that is not read (.heic)" in done.output


@pytest.mark.parametrize("damage", [lambda d: d[:-9], lambda d: b"x" + d, lambda d: b""])
def test_a_damaged_file_leaves_nothing_behind(folder: Path, student: Student, tmp_path, damage):
    (tmp_path / "a.nkd").write_bytes(damage(encode(student, photo(), 1)))
    done = run("decompress", tmp_path / "a.nkd", tmp_path / "a.png", "--student", folder)
    assert isinstance(done.exception, BitstreamError)
    assert "a.nkd" in str(done.exception)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nkd"]


def test_info_needs_no_student(student: Student, tmp_path: Path):
    data = encode(student, photo(), 2.5)
    (tmp_path / "a.nkd").write_bytes(data)
    assert json.loads(run("info", tmp_path / "a.nkd", "--json").output) == info(data)
    said = run("info", tmp_path / "a.nkd").output
    for words in ("NKD1, version 3", info(data)["student"], "70x90 pixels", "level 2.5", " y + "):
        assert words in said


def test_info_names_the_file_that_it_cannot_read(tmp_path: Path):
    (tmp_path / "a.nkd").write_bytes(b"")
    done = run("info", tmp_path / "a.nkd")
    assert (
        str(done.exception)
        == f"{tmp_path / 'a.nkd'}: the file is empty: compress the picture again"
    )


def test_a_folder_does_not_go_into_a_pipe(folder: Path, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(photo()))
    done = run("compress", tmp_path, "-", "--student", folder)
    assert "a folder does not go into a pipe" in str(done.exception)
    assert not Path("-").exists()


def test_two_wishes_at_once_are_refused(folder: Path, tmp_path: Path):
    words = ("--student", folder, "--level", 1, "--target-bpp", 1)
    done = run("compress", tmp_path / "a.png", tmp_path / "b.nkd", *words)
    assert "only one of them" in str(done.exception)


def test_pictures_are_written_as_png_only(folder: Path, tmp_path: Path):
    done = run("decompress", tmp_path / "a.nkd", tmp_path / "a.jpg", "--student", folder)
    assert "ends in .png" in str(done.exception)


# --- where a result may be written ------------------------------------------------------------


def test_where_one_can_write_nothing_is_said_and_nothing_left(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.png").write_bytes(b"kept")
    require_writable(tmp_path / "a.png", "--plot")
    require_writable(Path("a.png"), "--plot")
    require_writable(tmp_path / "old.png", "--plot")
    require_writable(tmp_path / "new" / "deep", "--out", folder=True)
    assert [p.name for p in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("place", "folder", "says"),
    [
        ("none/a.png", False, "cannot be written .*none: No such file or directory"),
        ("file/a.png", False, "cannot be written .*file: Not a directory"),
        ("file/new/deep", True, "cannot be written .*file: Not a directory"),
        ("x" * 300, False, "cannot be written .*File name too long"),
        ("/proc/nas-kd", True, "cannot be written ./proc: No such file or directory"),
        ("file", True, "is a file; give the name of a folder"),
        ("there", False, "is a folder; give the name of a file"),
    ],
)
def test_where_one_cannot_write_the_place_and_the_option_are_named(
    tmp_path: Path, place: str, folder: bool, says: str
):
    (tmp_path / "file").touch()
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match=f"^--out .*{says}"):
        require_writable(tmp_path / place, "--out", folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "there"]


# --- a wanted size or quality -----------------------------------------------------------------


def test_a_target_in_bits_is_met_from_below_and_nearly(student: Student):
    picture = photo()
    sizes = [8 * len(encode(student, picture, level)) / picture[..., 0].size for level in (1, 3)]
    wanted = sum(sizes) / 2
    found = info(file_of_bpp(student, picture, wanted).data)
    assert found["bpp"] <= wanted
    above = encode(student, picture, found["level"] + 2 * (student.levels - 1) / 2**8)
    assert 8 * len(above) / picture[..., 0].size > wanted
    assert info(file_of_bpp(student, picture, 1e3).data)["level"] == student.levels
    nearest, missed = file_of_bpp(student, picture, sizes[0] / 2)
    assert info(nearest)["level"] == 1
    assert f"level 1 of this student takes {sizes[0]:.4f} bpp" in str(missed)


def test_a_target_in_decibels_is_met_from_above_and_nearly(student: Student):
    picture = photo()
    reach = [psnr_db(decode(student, encode(student, picture, n)), picture) for n in (1, 3)]
    wanted = sum(reach) / 2
    data, missed = file_of_psnr(student, picture, wanted)
    assert missed is None
    quality = psnr_db(decode(student, data), picture)
    assert wanted <= quality < wanted + (reach[1] - reach[0]) / 4
    assert info(file_of_psnr(student, picture, 1).data)["level"] == 1
    nearest, missed = file_of_psnr(student, picture, reach[1] + 1)
    assert info(nearest)["level"] == student.levels
    assert f"highest level of this student reaches {reach[1]:.2f} dB" in str(missed)


@pytest.mark.parametrize(
    ("wish", "level", "says"),
    [
        (("--target-bpp", 0.001), 1, "--target-bpp 0.001: level 1 of this student takes"),
        (("--target-psnr", 99), 3, "--target-psnr 99: the highest level of this student reaches"),
    ],
)
def test_out_of_reach_the_nearest_level_is_taken_with_a_warning_and_strict_refuses(
    folder: Path, tmp_path: Path, wish: tuple[str, float], level: int, says: str
):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.png").write_bytes(png(photo()))
    done = run("compress", source, out, "--student", folder, *wish)
    assert done.exit_code == 0, done.output
    assert f"nas-kd: warning: {source / 'a.png'}: {says}" in done.output
    assert info((out / "a.png.nkd").read_bytes())["level"] == level
    done = run("compress", source, tmp_path / "b", "--student", folder, *wish, "--strict")
    assert f"1 of 1 files failed; the first: {source / 'a.png'}: {says}" in str(done.exception)
    assert tree(tmp_path / "b") == {}


@pytest.mark.parametrize("wish", [float("nan"), 0.0, -1.0])
def test_a_target_that_is_no_target_is_refused(student: Student, wish: float):
    for seek, option in ((file_of_bpp, "--target-bpp"), (file_of_psnr, "--target-psnr")):
        with pytest.raises(UsageError, match=f"{option} .*must be above 0"):
            seek(student, photo(), wish)


# --- what pictures are taken ------------------------------------------------------------------


def test_colour_grey_and_palette_keep_their_pixels():
    assert np.array_equal(read_picture(png(photo()), "a"), photo())
    grey = photo()[..., 0]
    assert np.array_equal(read_picture(png(grey), "a"), grey)
    for kind in ("BMP", "TIFF", "PPM"):
        wide = photo(30, 300)
        assert np.array_equal(read_picture(saved(Image.fromarray(wide), kind), "a"), wide)
    palette = Image.fromarray(photo()).quantize(16)
    assert np.array_equal(read_picture(saved(palette), "a"), np.asarray(palette.convert("RGB")))
    opaque = Image.fromarray(photo()).convert("RGBA")
    assert np.array_equal(read_picture(saved(opaque), "a"), photo())


def test_a_turned_photograph_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    turned = read_picture(saved(Image.fromarray(photo()), exif=exif), "a")
    assert np.array_equal(turned, np.rot90(photo(), 3))


def test_a_wide_profile_is_converted_and_one_that_cannot_be_used_is_told(caplog):
    picture = Image.fromarray(photo())
    wide = read_picture(saved(picture, icc_profile=profile()), "a.png")
    assert near(wide, srgb_of_adobe(photo()))
    assert caplog.records == []
    odd = read_picture(saved(picture, icc_profile=b"no profile"), "a.png")
    assert np.array_equal(odd, photo())
    assert "a.png: its colour profile cannot be used" in caplog.text


def test_a_phones_picture_with_others_beside_it_is_taken():
    phone = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}
    data = saved(Image.fromarray(photo()), "MPO", **phone)
    assert read_picture(data, "a.jpg").shape == (90, 70, 3)


def deep_png(kind: int, channels: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write in colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(16 * channels) for _ in range(8)))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (saved(Image.fromarray(np.full((5, 5), 999, np.uint16))), "over 8 bits"),
        (deep_png(2, 3), "over 8 bits"),
        (deep_png(4, 2), "over 8 bits"),
        (b"P6 2 1 65535\n" + bytes(12), "over 8 bits"),
        (saved(Image.new("RGBA", (5, 5), (1, 2, 3, 128))), "transparent"),
        (saved(Image.new("LA", (5, 5), (1, 0))), "transparent"),
        (b"GIF89a", "cannot be read as a picture"),
        (b"", "cannot be read as a picture .its 0 bytes are in no format known here"),
        (
            saved(
                Image.new("L", (5, 5)),
                "GIF",
                save_all=True,
                append_images=[Image.new("L", (5, 5), 9)],
            ),
            "2 frames",
        ),
    ],
)
def test_what_would_be_lost_is_refused(data: bytes, says: str):
    with pytest.raises(DataError, match=f"a.png: .*{says}"):
        read_picture(data, "a.png")
