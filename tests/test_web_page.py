"""The tutorial's page in headless Chromium, by onnxruntime-web from npm: the student restores the photograph there.

NAS_KD_NODE_MODULES names a folder that has onnxruntime-web already.
"""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from docs_pages import ROOT

from nas_kd.codec.checkpoint import load_student
from nas_kd.codec.onnx import export_onnx
from nas_kd.data.images import photograph
from nas_kd.places import TEACHERS

FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> Path:
    if (known := os.environ.get("NAS_KD_NODE_MODULES")) is not None:
        return Path(known)
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("npm")
    subprocess.run(["npm", "install", "--silent", "onnxruntime-web"], cwd=folder, check=True)
    return folder / "node_modules"


@pytest.fixture
def site(tmp_path, modules) -> Path:
    """What the tutorial's last commands leave, with ``mini`` as the student."""
    student, site = tmp_path / "student", tmp_path / "site"
    shutil.copytree(TEACHERS / "mini", student)
    export_onnx(load_student(student), student)
    (tmp_path / "photo.png").write_bytes(photograph("scikit-image/chelsea.png"))
    prepare = [sys.executable, str(ROOT / "docs/web/prepare.py")]
    subprocess.run([*prepare, str(student), str(tmp_path / "photo.png"), str(site)], check=True)
    for name in FILES:
        shutil.copy(modules / "onnxruntime-web" / "dist" / name, site)
    return site


@pytest.fixture
def address(site):
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(900)
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_restores_the_photograph(address, tmp_path):
    (tmp_path / "profile").mkdir()
    browser = Browser(tmp_path / "profile")
    try:
        browser.appear(1000, 800)
        browser.open(address)
        browser.wait("window.result || window.failed")
        assert browser.evaluate("window.failed || null") is None
        result = browser.evaluate("window.result")
        said = browser.evaluate("document.getElementById('said').textContent")
        print(said)
        if (picture := os.environ.get("NAS_KD_SCREENSHOT")) is not None:
            browser.screenshot(Path(picture))
        assert 25 < result["db"] < 45
        assert browser.errors == []
    finally:
        browser.close()
