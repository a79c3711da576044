"""The headline command from an empty home to a front: weights arrive, the search is killed and goes on."""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webserver import Site, serving
from zoo_file import serve, untrained

from nas_kd.study.study import open_study

COMMAND = """
import json, sys
from nas_kd.teachers import zoo_files
table = {int(quality): address for quality, address in json.loads(sys.argv.pop(1)).items()}
there = zoo_files.addresses() | {"cheng2020-anchor": table}
zoo_files.addresses = lambda: there
from nas_kd.cli.main import main
main()
"""
SPACE = """
[vary]
N = [8, 16]
[arch]
M = 24
hyper = 8
entropy = "mean-scale"
[arch.encoder]
stem = "trunk8"
widths = [0, 0, "$N"]
depths = [0, 0, 1, 0]
block = "depthwise"
kernel = 3
[arch.decoder]
stem = "trunk8"
widths = [0, 0, "$N"]
depths = [0, 0, 1, 0]
block = "depthwise"
kernel = 3
"""
SHORT = {"crops": 16, "crop_size": 64, "batch": 1, "warmup": 4, "rank": 2, "polish": 2}
KILLS = 3


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server with random models of cheng2020-anchor's layers, narrow, and an empty home beside pictures."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    (tmp_path / "space.toml").write_text(SPACE)
    (tmp_path / "pictures").mkdir()
    rows, columns = np.mgrid[0:96, 0:128]
    red = 128 + 90 * np.sin(rows / 9.0) * np.cos(columns / 13.0)
    picture = np.stack([red, red[::-1], 255 - red], axis=2).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "pictures" / "waves.png")
    monkeypatch.chdir(tmp_path)
    made = [
        serve(tmp_path / "made", f"cheng2020-anchor-{q}", untrained("cheng2020-anchor", 8))
        for q in range(1, 7)
    ]
    with serving(Site({file.name: file.read_bytes() for file in made})) as one:
        yield one


def begin(site: Site, log: Path) -> subprocess.Popen:
    """The one command."""
    table = {q: site.at(name) for q, name in enumerate(sorted(site.files), start=1)}
    words = ["search", "--teacher", "cheng2020", "--effort", "quick", "--data", "pictures", "--yes"]
    words += ["--eval-data", "pictures", "--space", "space.toml", "--budget", "2", "--steps", "4"]
    words += ["--objectives", "rd_cost,flops", "--workers", "1"]
    words += [word for key, value in SHORT.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-c", COMMAND, json.dumps(table), *words]
    with log.open("a") as said:
        return subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)


def wait_for(happened, process: subprocess.Popen, log: Path) -> None:
    """Until it has happened, or the process has ended well before."""
    while not happened() and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() in (None, 0), log.read_text()


def kill_while_it_fetches(site: Site, log: Path) -> None:
    site.piece, site.pause_s = 20_000, 0.05
    hub = Path("TORCH_HOME/hub/checkpoints")
    search = begin(site, log)
    wait_for(lambda: any(p.stat().st_size > 40_000 for p in hub.glob(".*.part")), search, log)
    search.kill()
    search.wait()
    site.pause_s = 0


def kill_after_lines(n: int, site: Site, log: Path) -> None:
    before = len(log.read_text().splitlines())
    search = begin(site, log)
    wait_for(lambda: len(log.read_text().splitlines()) >= before + n, search, log)
    search.kill()
    search.wait()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_command_leads_from_an_empty_home_to_a_front_however_often_it_is_killed(site, tmp_path):
    log, chance = tmp_path / "log", random.Random(1)
    kill_while_it_fetches(site, log)
    for _ in range(KILLS):
        kill_after_lines(chance.randrange(6, 18), site, log)
    assert begin(site, log).wait() == 0, log.read_text()
    whole = Counter(name for name, wanted in site.asked if wanted is None)
    assert whole == {name: 1 for name in site.files}  # what broke off was gone on with
    study = open_study("space-cheng2020")
    assert len(study.front()) >= 1
    assert study.counted() == 2
    for trial in study.front():
        assert (study.student_folder(trial) / "student.safetensors").is_file()
