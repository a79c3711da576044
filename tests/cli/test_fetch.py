"""What is fetched is told first and asked for once; weights and pictures arrive from a server on this machine."""

import hashlib
import io
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webserver import Site, serving

from nas_kd.cli.main import main
from nas_kd.data import picture_sets
from nas_kd.data.download import Patience, Wanted
from nas_kd.data.fetch import POLICY, Order, supply
from nas_kd.data.images import open_images
from nas_kd.errors import DataError, NasKdError, TeacherError, UsageError
from nas_kd.study.settings import Settings
from nas_kd.study.sources import warn_of_few
from nas_kd.teachers import zoo_files
from nas_kd.teachers.served import hub_folder

FREE = ("--objectives", "bd_rate,flops")
HASTY = Patience(timeout_s=1.0, pause_s=0.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def archive(names: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as opened:
        for name, data in names.items():
            opened.writestr(name, data)
    return file.getvalue()


PICTURES = {
    "one.png": picture(1),
    "two.png": picture(2),
    "set.zip": archive(
        {
            "train/a.png": picture(1),
            "train/b.png": picture(2),
            "__MACOSX/train/._a.png": b"x",
            "../outside.png": picture(3),
            "train/notes.txt": b"x",
        }
    ),
    "no.zip": b"not an archive",
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of its own, where nobody is at a terminal and nothing was said."""
    monkeypatch.delenv(POLICY, raising=False)
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture
def site(home):
    """A server, and a user's file that names three sets there."""
    with serving(Site(dict(PICTURES))) as one:
        both = ", ".join(
            f'{{file = "{n}", bytes = {len(PICTURES[n])}, sha256 = "{sha256(PICTURES[n])}"}}'
            for n in ("one.png", "two.png")
        )
        text = "".join(
            f'[{name}]\nmirrors = ["{one.address}/absent/{{file}}", "{one.address}/{{file}}"]\nfiles = [{files}]\n'
            for name, files in {
                "pair": both,
                "zipped": '{file = "set.zip"}',
                "broken": '{file = "no.zip"}',
            }.items()
        )
        picture_sets.own_file().parent.mkdir(parents=True)
        picture_sets.own_file().write_text(text)
        yield one


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nas-kd", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def order(folder: Path, site: Site, name: str = "one.png", **more) -> Order:
    file = Wanted(folder / name, (site.at(name),), **more)
    return Order(f"pictures {name}", name, (file,), folder, "licence: none")


# --- asked for once ---


def test_without_a_terminal_or_a_word_nothing_is_asked_of_the_network(site, tmp_path):
    with pytest.raises(UsageError, match="not fetched \\(nobody to ask here; --yes") as caught:
        supply([order(tmp_path / "to", site)])
    assert "\n" not in str(caught.value)
    assert not site.asked
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("said", ["always", "yes"])
def test_whoever_said_so_beforehand_is_not_asked(site, tmp_path, said, monkeypatch, capsys):
    if said == "always":
        monkeypatch.setenv(POLICY, said)
    supply([order(tmp_path, site, size=12)], yes=said == "yes")
    assert (tmp_path / "one.png").read_bytes() == PICTURES["one.png"]
    told = capsys.readouterr().err
    for part in ("one.png", "about 1.2e-05 MB", site.at("one.png"), str(tmp_path), "licence: none"):
        assert part in told


def test_never_is_one_line_with_address_size_folder_and_command(site, tmp_path, monkeypatch):
    monkeypatch.setenv(POLICY, "never")
    with pytest.raises(UsageError) as caught:
        supply([order(tmp_path, site, size=2_000_000, exact=True)])
    line = str(caught.value)
    parts = (
        site.at("one.png"),
        "2 MB",
        str(tmp_path),
        "nas-kd fetch one.png --yes --to DIR",
        POLICY,
    )
    assert [part for part in parts if part not in line] == []
    assert "\n" not in line
    assert not site.asked


def test_a_policy_that_there_is_not_is_refused(site, tmp_path, monkeypatch):
    monkeypatch.setenv(POLICY, "maybe")
    with pytest.raises(UsageError, match="NAS_KD_FETCH=maybe: must be always or never"):
        supply([order(tmp_path, site)])


@pytest.mark.parametrize(("answer", "fetched"), [("y\n", True), ("n\n", False), ("", False)])
def test_a_terminal_is_asked_once_for_all(site, tmp_path, monkeypatch, answer, fetched):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", screen)
    orders = [order(tmp_path / "a", site), order(tmp_path / "b", site, "two.png")]
    if fetched:
        supply(orders)
    else:
        with pytest.raises(UsageError, match="you did not agree"):
            supply(orders)
    said = screen.getvalue()
    assert said.count("[y/N]") == 1
    assert said.index(site.at("two.png")) < said.index("[y/N]")
    assert (tmp_path / "b" / "two.png").is_file() == fetched


def test_no_network_is_one_line_with_address_size_folder_and_command(tmp_path):
    file = Wanted(tmp_path / "to" / "w", ("http://nowhere.invalid/w",), size=5 * 10**6)
    with pytest.raises(NasKdError) as caught:
        supply([Order("teacher x", "x", (file,), tmp_path / "to")], yes=True)
    line = str(caught.value)
    parts = (
        "http://nowhere.invalid/w",
        "about 5 MB",
        str(tmp_path),
        "nas-kd fetch x --yes --to DIR",
    )
    assert [part for part in parts if part not in line] == []
    assert (caught.value.exit_code, "\n" in line) == (1, False)
    assert not (tmp_path / "to").exists()


def test_a_disk_too_small_is_told_before_anything_comes(site, tmp_path):
    with pytest.raises(UsageError, match=r"needs 1\.00e\+09 GB|needs 1000000000\.00 GB"):
        supply([order(tmp_path / "to", site, size=10**18, exact=True)], yes=True)
    assert not site.asked
    assert not (tmp_path / "to").exists()


# --- pictures ---


@pytest.mark.parametrize(
    ("name", "files"),
    [("pair", ["one.png", "two.png"]), ("zipped", ["train/a.png", "train/b.png"])],
)
def test_a_set_is_fetched_unpacked_and_opened_by_its_name(site, name, files, monkeypatch, capsys):
    monkeypatch.setenv(POLICY, "always")
    images = open_images(name, "eval")
    assert (images.name, list(images.names)) == (name, files)
    assert images.images[1].shape == (32, 48, 3)
    asked = len(site.asked)
    assert open_images(name, "train").fingerprint == images.fingerprint
    assert len(site.asked) == asked
    there = picture_sets.home() / name
    assert sorted(p.name for p in there.parent.iterdir()) == [f".{name}.lock", name]
    assert name in capsys.readouterr().err


def test_a_folder_of_a_sets_name_comes_first(site, monkeypatch):
    Path("pair").mkdir()
    Path("pair", "own.png").write_bytes(PICTURES["one.png"])
    assert open_images("pair", "train").names == ("own.png",)


def test_a_set_that_lost_a_file_is_fetched_again(site, monkeypatch):
    monkeypatch.setenv(POLICY, "always")
    fingerprint = open_images("pair", "eval").fingerprint
    (picture_sets.home() / "pair" / "two.png").write_bytes(b"")
    assert open_images("pair", "eval").fingerprint == fingerprint


def test_a_set_that_is_not_here_is_refused_by_name(site):
    with pytest.raises(DataError, match="lacking here: pictures pair"):
        open_images("pair", "eval")


def test_what_is_no_archive_is_thrown_away(site):
    one = picture_sets.order_of(picture_sets.known()["broken"])
    with pytest.raises(NasKdError, match=r"no\.zip cannot be unpacked .* thrown away"):
        supply([one], yes=True)
    assert not picture_sets.is_there(picture_sets.known()["broken"])
    assert not list((picture_sets.home() / ".broken").iterdir())


def test_a_broken_fetch_of_a_set_goes_on_and_fetches_nothing_twice(site, monkeypatch, capsys):
    one, two = PICTURES["one.png"], PICTURES["two.png"]
    site.files.pop("two.png")
    assert run(monkeypatch, "fetch", "pair", "--yes") == 1
    assert "answers 404" in capsys.readouterr().err
    site.files["two.png"], site.sent = two, 0
    assert run(monkeypatch, "fetch", "pair", "--yes") == 0
    assert site.sent == len(two)
    assert run(monkeypatch, "fetch", "pair", "--yes") == 0
    assert "there already" in capsys.readouterr().out
    assert (picture_sets.home() / "pair" / "one.png").read_bytes() == one


def test_a_fetch_that_is_killed_goes_on_where_it_was(site):
    whole = site.files["one.png"] = np.random.default_rng(5).bytes(1_000_000)
    was, text = PICTURES["one.png"], picture_sets.own_file().read_text()
    text = text.replace(f"bytes = {len(was)}", f"bytes = {len(whole)}", 1)
    picture_sets.own_file().write_text(text.replace(sha256(was), sha256(whole)))
    site.piece, site.pause_s = 20_000, 0.02
    words = [
        sys.executable,
        "-c",
        "from nas_kd.cli.main import main; main()",
        "fetch",
        "pair",
        "--yes",
    ]
    part = picture_sets.home() / ".pair" / ".one.png.part"
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as killed:
        while killed.poll() is None and (not part.exists() or part.stat().st_size < 100_000):
            time.sleep(0.01)
        killed.kill()
    had = part.stat().st_size
    assert 100_000 <= had < len(whole)
    site.asked.clear()
    site.pause_s = 0
    assert subprocess.run(words, capture_output=True).returncode == 0
    assert ("one.png", f"bytes={had}-") in site.asked
    assert (picture_sets.home() / "pair" / "one.png").read_bytes() == whole


def test_a_set_may_be_fetched_to_another_place(site, home, monkeypatch, capsys):
    assert run(monkeypatch, "fetch", "zipped", "--yes", "--to", str(home / "stick")) == 0
    assert open_images(str(home / "stick" / "zipped"), "eval").names == (
        "train/a.png",
        "train/b.png",
    )
    assert not picture_sets.is_there(picture_sets.known()["zipped"])


def test_the_cache_lists_sets(site, monkeypatch, capsys):
    run(monkeypatch, "fetch", "pair", "--yes")
    capsys.readouterr()
    assert run(monkeypatch, "cache", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(picture_sets.home() / "pair")
    assert found["bytes"] > len(PICTURES["one.png"])
    assert found["holds"] == "2 pictures, for --data pair"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kodak = 3", "'kodak' is no set"),
        ("[Big]\n", "'Big' is no set"),
        ("[x]\nurl = 'http://a'\n", "x has the key 'url'; there are"),
        ("[x]\nfiles = [{file = 'a.zip'}]\n", "x needs mirrors"),
        ("[x]\nmirrors = ['file:///a']\nfiles = [{file = 'a.zip'}]\n", "x needs mirrors"),
        ("[x]\nmirrors = ['http://a']\n", "x needs files"),
        ("[x]\nmirrors = ['http://a']\nfiles = [{file = '../a.zip'}]\n", "x needs files"),
        ("[x]\nmirrors = ['http://a']\nfiles = [{file = 'a.exe'}]\n", "x needs files"),
        ("[x]\nmirrors = ['http://a']\nfiles = [{file = 'a.zip', md5 = '1'}]\n", "x needs files"),
        ("[x", "cannot be read"),
    ],
)
def test_a_users_file_that_breaks_a_rule_is_named(home, text, says):
    picture_sets.own_file().parent.mkdir(parents=True)
    picture_sets.own_file().write_text(text)
    with pytest.raises(DataError) as caught:
        picture_sets.known()
    assert says in str(caught.value)
    assert str(picture_sets.own_file()) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_users_mirror_of_our_set_comes_first(home):
    picture_sets.own_file().parent.mkdir(parents=True)
    picture_sets.own_file().write_text('[kodak]\nmirrors = ["http://near/{file}"]\n')
    one = picture_sets.known()["kodak"]
    (first, *_) = picture_sets.order_of(one).files
    assert first.addresses[:2] == (
        "http://near/kodim01.png",
        "https://r0k.us/graphics/kodak/kodak/kodim01.png",
    )
    assert (first.size, len(first.sha256), one.pictures) == (736501, 64, 24)


def test_our_sets_say_where_their_figures_come_from():
    tables = picture_sets._tables(picture_sets.OURS)
    assert set(tables) == {"kodak", "clic-train", "div2k-train"}
    for name, table in tables.items():
        one = picture_sets.known()[name]
        assert table["about"].strip()
        assert one.licence
        assert one.size == sum(file["bytes"] for file in one.files)
        assert all(len(file["sha256"]) == 64 for file in one.files)
        assert all(mirror.startswith("http") for mirror in one.mirrors)
    assert len(tables["kodak"]["files"]) == 24


# --- weights ---


def test_addresses_are_compressais_own():
    from compressai.zoo.image import model_urls

    import nas_kd.codec.compressai_light  # noqa: F401

    assert zoo_files.addresses() == {n: model_urls[n]["mse"] for n in zoo_files.ZOO_NAMES}


@pytest.mark.parametrize("name", zoo_files.TEACHERS)
def test_the_sizes_told_beforehand_are_those_of_the_models(name):
    from compressai.zoo.image import cfgs, model_architectures

    import nas_kd.codec.compressai_light  # noqa: F401

    last_narrow, *sizes_mb = zoo_files.ABOUT_MB[name]
    assert cfgs[name][last_narrow] != cfgs[name][last_narrow + 1]
    for quality, told in zip((1, last_narrow + 1), sizes_mb, strict=True):
        state = model_architectures[name](*cfgs[name][quality]).state_dict()
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        assert told == pytest.approx(size / 1e6, rel=0.03)


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "TORCH_HOME", None])
def test_the_folder_is_torchs(monkeypatch, home, variable):
    import torch

    monkeypatch.delenv("XDG_CACHE_HOME")
    if variable:
        monkeypatch.setenv(variable, str(home / "x"))
    whole = Path(torch.hub.get_dir()) / "checkpoints"
    assert hub_folder() == whole


@pytest.fixture
def zoo(site, monkeypatch):
    """Six made models of cheng2020-anchor's shape, and CompressAI's table leading to them."""
    import torch
    from compressai.zoo.image import model_architectures

    import nas_kd.codec.compressai_light  # noqa: F401

    table = {}
    for quality in range(1, 7):
        torch.manual_seed(quality)
        model = model_architectures["cheng2020-anchor"](8 if quality < 4 else 12)
        torch.save(model.state_dict(), file := io.BytesIO())
        data = file.getvalue()
        name = f"cheng2020-anchor-{quality}-{sha256(data)[:8]}.pth.tar"
        site.files[name], table[quality] = data, site.at(name)
    monkeypatch.setattr(zoo_files, "addresses", lambda: {"cheng2020-anchor": table})
    return site


def test_a_zoo_name_fetches_its_weights_and_is_a_teacher(zoo, monkeypatch):
    from nas_kd.teachers.teacher import load_teacher

    zoo.break_after = [100_000]
    monkeypatch.setenv(POLICY, "always")
    teacher = load_teacher("cheng2020")
    assert (teacher.name, teacher.levels, teacher.latent_widths) == (
        "cheng2020-anchor",
        6,
        (12, 12),
    )
    asked = len(zoo.asked)
    assert asked == 7
    assert load_teacher("cheng2020:3").fingerprint == teacher.fingerprint.split("+")[2]
    assert len(zoo.asked) == asked


def test_weights_that_are_lacking_name_the_ways_out(zoo):
    from nas_kd.teachers.teacher import load_teacher

    with pytest.raises(TeacherError) as caught:
        load_teacher("cheng2020:3")
    line = str(caught.value)
    for way in (
        "--set weights=DIR",
        "nas-kd teacher train",
        "--teacher mini",
        "nas-kd fetch cheng2020:3",
    ):
        assert way in line
    assert "\n" not in line
    assert "cheng2020-anchor-3-" in line
    assert not zoo.asked


def test_fetch_brings_one_quality_and_brings_a_damaged_one_again(zoo, monkeypatch, capsys):
    assert run(monkeypatch, "fetch", "cheng2020:3", "--yes") == 0
    (file,) = hub_folder().iterdir()
    data = file.read_bytes()
    file.write_bytes(data[:-5])
    assert run(monkeypatch, "fetch", "cheng2020:3", "--yes") == 0
    assert file.read_bytes() == data
    assert len(zoo.asked) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fetch", "nonsense"], "nonsense: nothing to fetch is known by that name"),
        (["fetch", "cheng2020:9"], "quality must be 1 to 6"),
        (["fetch", "bmshj2018-factorized"], "no hyper-latents"),
        (["fetch", "kodak"], "lacking here: pictures kodak"),
        (
            ["search", *FREE, "--teacher", "cheng2020", "--data", "builtin"],
            "lacking here: teacher cheng2020",
        ),
        (["search", *FREE, "--eval-data", "kodak"], "lacking here: pictures kodak"),
        (["warmup", "--set", "data=kodak"], "lacking here: pictures kodak"),
        (["eval", "absent", "--data", "kodak"], "lacking here: pictures kodak"),
        (["baselines", "--data", "div2k-train"], "3.53 GB"),
    ],
)
def test_what_cannot_be_fetched_is_one_line_and_nothing_is_written(
    home, monkeypatch, capsys, words, says
):
    assert run(monkeypatch, *words) == 2
    said = capsys.readouterr().err
    assert (len(said.splitlines()), says in said) == (1, True), said
    assert sorted(p.name for p in home.iterdir()) == ["here"]
    assert not list((home / "here").iterdir())


def test_a_zoo_teacher_on_the_built_in_pictures_is_refused_unless_said(home, monkeypatch, capsys):
    assert run(monkeypatch, "search", *FREE, "--teacher", "cheng2020") == 2
    said = capsys.readouterr().err
    assert "too few to learn from it; give --data clic-train" in said
    assert "lacking here: teacher cheng2020" in said
    study = (
        "space = 'prim'\nteacher = 'bmshj2018-hyperprior:5'\nobjectives = ['rd_cost', 'flops']\n"
    )
    for text, refused in ((study, True), (study + "data = 'builtin'\n", False)):
        Path("study.toml").write_text(text)
        assert run(monkeypatch, "search", "study.toml") == 2
        assert ("too few to learn from" in capsys.readouterr().err) == refused


@pytest.mark.parametrize(("count", "warned"), [(1, True), (200, False)])
def test_few_photographs_are_warned_of(home, caplog, count, warned):
    Path("few").mkdir()
    for i in range(count):
        Path("few", f"{i}.png").touch()
    warn_of_few(Settings("s", "demo", data="few"))
    assert ("1 photographs to train on" in caplog.text) == warned
    caplog.clear()
    warn_of_few(Settings("s", "demo"))
    assert not caplog.text
    warn_of_few(Settings("s", "demo", teacher="cheng2020"))
    assert "6 photographs to train on: students fit these" in caplog.text


def test_a_refused_search_never_loads_torch(home):
    code = (
        "import sys; from nas_kd.cli.main import main\ntry: main()\n"
        "finally: print(*{'torch', 'ray', 'optuna'} & set(sys.modules))"
    )
    words = ["search", "--teacher", "cheng2020", "--data", "clic-train"]
    said = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert (said.returncode, said.stdout.strip()) == (2, "")
    assert "teacher cheng2020" in said.stderr
    assert "pictures clic-train" in said.stderr


def test_fetch_without_a_name_lists_what_there_is(site, monkeypatch, capsys):
    run(monkeypatch, "fetch", "pair", "--yes")
    capsys.readouterr()
    assert run(monkeypatch, "fetch") == 0
    said = capsys.readouterr().out
    assert "cheng2020-anchor:" in said
    assert "6 files lacking, about 495 MB" in said
    (pair,) = [line for line in said.splitlines() if line.startswith("pair:")]
    assert pair.endswith("; there")
    assert "24 pictures, 15.4 MB" in said
