import json
import sys
import threading
import urllib.request

import pytest

from nas_kd.cli.main import main
from nas_kd.errors import UsageError
from nas_kd.report.dashboard import bind
from nas_kd.study.trial_artifacts import METRIC_NAMES


@pytest.fixture
def url(small):
    with bind(small, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def fetch(address):
    with urllib.request.urlopen(address, timeout=30) as answer:
        return answer.read()


def detail(url):
    known = json.loads(fetch(f"{url}/api/studies"))["study_summaries"]
    assert [s["study_name"] for s in known] == ["small"]
    return json.loads(fetch(f"{url}/api/studies/{known[0]['study_id']}"))


def test_it_shows_trials_names_notes_constraints_and_plots(url):
    shown = detail(url)
    assert shown["objective_names"] == [METRIC_NAMES["bd_rate"], METRIC_NAMES["flops"]]
    states = [trial["state"] for trial in shown["trials"]]
    assert states == ["Complete"] * 3 + ["Pruned", "Fail"]
    assert [t["constraints"] for t in shown["trials"][:4]] == [[0.0, 0.0]] * 3 + [[2.5, 0.0]]
    assert "| 6 |" in shown["trials"][0]["note"]["body"]
    assert "partial_overlap** (2.50 dB short)" in shown["trials"][3]["note"]["body"]
    assert "out of memory" in shown["trials"][4]["note"]["body"]
    assert "energy is absent" in shown["note"]["body"]
    assert {g["id"] for g in shown["plotly_graph_objects"]} == {"rd-curves", "hypervolume"}


def test_its_front_is_ours_and_optunas(url, small):
    best = {trial["number"] for trial in detail(url)["best_trials"]}
    assert best == {t.number for t in small.front()} == {t.number for t in small.optuna.best_trials}


def test_its_artifacts_can_be_fetched(url, small):
    shown = detail(url)
    trial = shown["trials"][0]
    image = next(a for a in trial["artifacts"] if a["filename"] == "rd.png")
    address = f"{url}/artifacts/{trial['study_id']}/{trial['trial_id']}/{image['artifact_id']}"
    assert fetch(address).startswith(b"\x89PNG")


def test_a_port_in_use_is_an_error_of_usage(small, url):
    with pytest.raises(UsageError, match="--port"):
        bind(small, int(url.rsplit(":", 1)[1]))


def test_the_command_says_so_and_exits_with_2(url, monkeypatch, capsys):
    words = ["dashboard", "small", "--port", url.rsplit(":", 1)[1]]
    monkeypatch.setattr(sys, "argv", ["nas-kd", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert (ended.value.code, len(said.splitlines())) == (2, 1), said
