"""Weights of teachers arrive from a server on this machine."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from fetching import FREE, run, sha256

from nas_kd.data.fetch import POLICY
from nas_kd.errors import TeacherError
from nas_kd.study.settings import Settings
from nas_kd.study.sources import warn_of_few
from nas_kd.teachers import zoo_files
from nas_kd.teachers.served import hub_folder


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
