"""The shell and TOML blocks of README and docs, run as they stand, but for the numbers that make them long.

Each command runs once with each set of options.
"""

import io
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from docs_pages import PAGES, ROOT
from PIL import Image

from nas_kd.codec.search_space import load_space
from nas_kd.data.images import photograph

FIRST = ("docs/first-search.md", "README.md")
LATER = ("docs/own-data-and-teacher.md", "docs/search-space.md", "docs/energy.md")
"""Pages whose blocks run one after the other in one folder."""

PLACEHOLDERS = {"STUDY": "first", "STUDENT_OR_ARCH": "my-arch.toml", "DIR": "photographs"}

ELSEWHERE = {
    r"postgresql": "needs a database",
    r"^ray start|--address": "needs a cluster",
    r"--trials-per-gpu": "needs a GPU",
    r"weights=|^nas-kd paper|control\.toml": "needs CompressAI's weights, or a study made with them",
    r"^nas-kd dashboard": "serves until Ctrl-C",
    r"^optuna-dashboard": "serves until Ctrl-C",
    r"^nas-kd push": "needs a hub, a token and a network",
    r"^nas-kd fetch|cheng2020": "needs a network",
    r"--install-completion": "needs a shell that it runs in",
    r"^make": "the developer's own",
    r"^npm|^cp node_modules|^python": "tests/test_web_page.py does that",
}
SHIM = """#!{python}
import sys, pathlib
short = {{"--budget": "2", "--steps": "2", "--crops": "64", "--width": "16"}}
keys = {{"crops": "64"}} | ({{}} if sys.argv[1] == "search" else {{"steps": "2"}})
if sys.argv[1] == "warmup" or "warmup=" in " ".join(sys.argv):
    keys["warmup"] = "2"  # else built-in weights are what students start from
args = sys.argv[1:]
options = {{"search": ("--budget", "--steps"), "teacher": ("--steps",)}}.get(args[0], ())
for name, value in short.items():
    if name in args:
        args[args.index(name) + 1] = value
    elif name in options:
        args += [name, value]
if args[0] in ("search", "warmup", "distill"):
    said = [at for at, word in enumerate(args) if word == "--set" and args[at + 1].split("=")[0] in keys]
    for at in reversed(said):
        del args[at : at + 2]
    args += [word for key, value in keys.items() for word in ("--set", f"{{key}}={{value}}")]
if args[0] == "search":
    args += ["--workers", "1"]
sys.argv[1:] = args
from nas_kd.cli.main import main
try:
    main()
finally:
    if args[0] == "export":
        # The pages speak of the third trial; of so few trials it may not be there.
        out = pathlib.Path(args[args.index("--out") + 1])
        for member in sorted(out.glob("trial-*"))[:1]:
            for name in ("trial-0000", "trial-0003"):
                (out / name).exists() or (out / name).symlink_to(member.name)
"""


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each code block; an indented one has no language."""
    text, found = page.read_text(), list[tuple[str, str]]()
    for match in re.finditer(r"^```(.*?)\n(.*?)^```|(?:^    [^\n]*\n?)+", text, re.M | re.S):
        fenced = match[2] is not None
        lines = match[2] if fenced else re.sub("^    ", "", match[0], flags=re.M)
        found.append((match[1] if fenced else "", lines))
    return found


def shell_lines(page: Path) -> list[str]:
    """The commands of a page's shell blocks, without those that need what is not here."""
    lines = [x for kind, text in blocks(page) if kind in ("", "bash") for x in text.splitlines()]
    if page.name == "README.md":
        lines = [filled(x) for x in lines if x.startswith("nas-kd ")]  # beside a tree and Python
    return [x for x in lines if x.strip() and not any(re.search(e, x) for e in ELSEWHERE)]


def different(lines: list[str]) -> list[str]:
    """The first line of each command with each set of options."""
    found: dict[tuple[object, ...], str] = {}
    for line in lines:
        words = line.partition("#")[0].split()
        options = frozenset(w for w in words if w.startswith("--"))
        files = line.startswith("nas-kd search") and words[2].endswith(".toml")
        found.setdefault((*words[:2], "train" in words, files, options), line)
    return list(found.values())


def filled(line: str) -> str:
    for name, value in PLACEHOLDERS.items():
        line = re.sub(rf"\b{name}\b", value, line)
    return line


def test_every_fenced_block_has_a_language_that_is_tested():
    kinds = {kind for page in PAGES for kind, _ in blocks(page)}
    assert kinds <= {"", "bash", "toml", "{toctree}", "{math}"}


def test_a_block_ends_where_it_ends(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n\n    one\n    two\n\nb\n\n```toml\nx = 1\n```\n")
    assert blocks(page) == [("", "one\ntwo\n"), ("toml", "x = 1\n")]


def test_every_toml_block_is_a_search_space(tmp_path):
    spaces = [text for page in PAGES for kind, text in blocks(page) if kind == "toml"]
    for text in spaces:
        (tmp_path / "space.toml").write_text(text)
        assert load_space(str(tmp_path / "space.toml")).size == 16
    assert spaces


@pytest.fixture
def home(tmp_path):
    """A folder with all that the pages take as given."""
    shim = tmp_path / "bin" / "nas-kd"
    shim.parent.mkdir()
    shim.write_text(SHIM.format(python=sys.executable))
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    cat = Image.open(io.BytesIO(photograph("scikit-image/chelsea.png"))).convert("RGB")
    for i, name in enumerate(["photographs", "holdout", "photos", "pictures"]):
        (tmp_path / name).mkdir()
        for left in (0, 192):
            crop = cat.crop((left, 64 * i, left + 192, 64 * i + 128))
            crop.save(tmp_path / name / f"{left}.png")
    crop.save(tmp_path / "photo.png")
    space = (ROOT / "search_spaces" / "demo.toml").read_text()
    (tmp_path / "my-space.toml").write_text(space)
    study = 'space = "demo"\nteacher = "mini"\nobjectives = ["bd_rate", "flops"]\n'
    for name in ("my-study.toml", "study.toml"):
        (tmp_path / name).write_text(study)
    arch = re.sub(r"\[vary\].*?\n(?=\[arch\])", "", space, flags=re.S)
    for name, choices in load_space("demo").vary.items():
        arch = arch.replace(f'"${name}"', str(choices[0]))
    for name in ("my-arch.toml", "arch.toml"):
        (tmp_path / name).write_text(arch)
    return tmp_path


def run(home: Path, lines: list[str]) -> None:
    """Each line by itself, in bash; the first that fails is named."""
    env = os.environ | {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    env |= {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local"}
    env |= {"XDG_CACHE_HOME": str(home / "cache")}
    for line in lines:
        print(line, flush=True)
        done = subprocess.run(["bash", "-c", line], cwd=home, env=env, capture_output=True)
        said = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
        assert done.returncode == 0, f"{line}\n{said[-3000:]}"


def lines_of(names: tuple[str, ...]) -> list[str]:
    return different([line for name in names for line in shell_lines(ROOT / name)])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_commands_of_a_first_search_run_in_their_order(home):
    run(home, lines_of(FIRST))
    assert (home / "report.html").stat().st_size > 1_000_000
    assert (home / "front.png").exists()
    assert (home / "photo.nkd").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_commands_about_data_spaces_and_energy_run_in_their_order(home):
    run(home, lines_of(LATER))
    assert (home / "my-student" / "arch.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_commands_of_the_tutorial_run_in_their_order(home):
    run(home, lines_of(("docs/tutorial.md",)))
    assert list((home / "students").glob("trial-*/decoder.onnx"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_commands_of_the_questions_run_in_their_order(home):
    lines = lines_of(("docs/questions.md",))
    run(home, [line for line in lines if line.startswith("nas-kd")])
    assert (home / "points.csv").stat().st_size > 0
    python = "\n".join(line for line in lines if not line.startswith("nas-kd"))
    assert "bd_rate(mine, student" in python
    run(home, [f"{sys.executable} -c {shlex.quote(python)}"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_about_a_front_run(home, small_folder):
    (home / "studies").symlink_to(small_folder / "studies")
    shutil.rmtree(home / "pictures")
    (home / "pictures").symlink_to(small_folder / "pictures")
    lines = shell_lines(ROOT / "docs" / "front.md")
    assert len(lines) >= 6
    run(home, lines)
    assert (home / "students" / "trial-0000").is_dir()
