"""A student goes to a model hub and comes back the same: Hugging Face's client against a server in this process."""

import base64
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from nas_kd.cli.main import app
from nas_kd.codec.checkpoint import load_student, weights_digest
from nas_kd.errors import NasKdError, UsageError
from nas_kd.places import TEACHERS
from nas_kd.report.hub import CONFIG, FILES, README, header, push

MINI = TEACHERS / "mini"


class Hub(ThreadingHTTPServer):
    """Keeps what is committed below a folder; takes one token."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder, self.asked, self.private = folder, [], None
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append(self.path)
        if self.headers.get("Authorization") != "Bearer hf_mine":
            return self._say({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)  # older clients say private, newer ones visibility
            self.server.private = asked.get("private", asked.get("visibility") == "private")
            return self._say({"url": f"{self.server.url}/me/small"})
        if self.path == "/api/validate-yaml":
            return self._say({"errors": [], "warnings": []})
        if self.path.endswith("/preupload/main"):
            names = [one["path"] for one in json.loads(body)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            return self._say({"files": [{"path": name} | plain for name in names]})
        self._keep([json.loads(line) for line in body.splitlines()])
        return self._say(
            {"commitOid": "0" * 40, "commitUrl": f"{self.server.url}/me/small/commit/0"}
        )

    def _keep(self, lines: list[dict]) -> None:
        for line in lines:
            if line["key"] == "file":
                data = base64.b64decode(line["value"]["content"])
                (self.server.folder / line["value"]["path"]).write_bytes(data)

    def _say(self, answer: dict, code: int = 200) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(tmp_path) -> Iterator[Hub]:
    (tmp_path / "kept").mkdir()
    server = Hub(tmp_path / "kept")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def client(hub: Hub, token: str = "hf_mine"):
    return pytest.importorskip("huggingface_hub").HfApi(endpoint=hub.url, token=token)


def test_what_comes_back_is_the_student(hub, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(MINI, mine)
    (mine / "notes.txt").write_text("not for others")
    (mine / README).write_text(header() + "# mine\n")
    assert push(mine, "me/small", api=client(hub)) == f"{hub.url}/me/small"
    assert hub.private is True
    assert {p.name for p in hub.folder.iterdir()} == {
        README,
        CONFIG,
        "arch.json",
        "student.safetensors",
    }
    assert weights_digest(load_student(hub.folder)) == weights_digest(load_student(mine))
    assert (hub.folder / README).read_text() == header() + "# mine\n"


def test_a_student_without_a_readme_gets_one_with_a_header_that_the_hub_reads(hub):
    push(MINI, "me/small", public=True, api=client(hub))
    assert hub.private is False
    _, front, rest = (hub.folder / README).read_text().split("---\n", 2)
    found = yaml.safe_load(front)
    assert (found["library_name"], found["pipeline_tag"]) == ("nas-kd", "image-to-image")
    assert "image-compression" in found["tags"]
    assert "license" not in found
    assert rest.strip().startswith("# mini")
    known = json.loads((hub.folder / CONFIG).read_text())
    assert all((hub.folder / known[name]).is_file() for name in ("arch", "weights"))


def test_a_hub_that_refuses_is_told_in_one_line(hub):
    with pytest.raises(NasKdError, match="me/small: the hub did not take it") as told:
        push(MINI, "me/small", api=client(hub, "hf_other"))
    assert told.value.exit_code == 1
    assert "\n" not in str(told.value)
    assert not list(hub.folder.iterdir())


def test_bad_input_is_told_before_anything_is_sent(hub, tmp_path):
    with pytest.raises(UsageError, match="'small': must be OWNER/NAME"):
        push(MINI, "small", api=client(hub))
    with pytest.raises(UsageError, match="no codec there"):
        push(tmp_path, "me/small", api=client(hub))
    assert hub.asked == []


def test_without_package_or_token_the_command_says_what_to_do(monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    done = CliRunner().invoke(app, ["push", str(MINI), "me/small"])
    assert re.search("no token .* `hf auth login`, or set HF_TOKEN", str(done.exception))
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    done = CliRunner().invoke(app, ["push", str(MINI), "me/small"])
    assert "pip install 'nas-kd[hub]'" in str(done.exception)


def test_only_known_files_may_go():
    assert set(FILES) >= {README, CONFIG, "arch.json", "student.safetensors", "rd.json"}
    assert not any("/" in name for name in FILES)
