"""Benchmarks begin: their imports and options hold. What they measure is in benchmarks/LOG.md."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
HELP = """
import io, runpy, sys
from contextlib import redirect_stdout
sys.path.insert(0, sys.argv[1])
for script in sys.argv[2:]:
    sys.argv, said = [script, "--help"], io.StringIO()
    try:
        with redirect_stdout(said):
            runpy.run_path(script, run_name="__main__")
        ended = "a module without a command line"
    except SystemExit as end:
        ended = end.code
    except Exception as error:
        ended = f"{type(error).__name__}: {error}"
    print(script, ended, "--quick" in said.getvalue(), sep="\\t")
"""


@pytest.mark.thorough
def test_every_benchmark_says_its_options():
    """In one process, for torch is loaded once then."""
    asked = [sys.executable, "-c", HELP, SCRIPTS[0].parent, *SCRIPTS]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, cwd=ROOT)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    ended = {Path(script).name: end for script, end, _ in rows}
    modules = {p.name for p in SCRIPTS if "__main__" not in p.read_text()}
    wanted = {
        p.name: "a module without a command line" if p.name in modules else "0" for p in SCRIPTS
    }
    assert ended == wanted
    assert {Path(script).name for script, _, quick in rows if quick == "False"} == modules


def imported(file: Path) -> set[str]:
    """The first names of all modules that a file imports."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    named = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    return {name.split(".")[0] for name in plain | named}


def test_tests_and_benchmarks_import_nothing_of_each_other():
    tests = [*(ROOT / "tests").rglob("*.py")]
    of_tests = {"tests"} | {p.stem for p in tests}
    of_benchmarks = {"benchmarks"} | {p.stem for p in SCRIPTS}
    for files, theirs in ((SCRIPTS, of_tests), (tests, of_benchmarks)):
        assert {p.name: imported(p) & theirs for p in files if imported(p) & theirs} == {}


LOG = (ROOT / "benchmarks" / "LOG.md").read_text()
HEADING = re.compile(r"^## (\d+)\. (\d{4}-\d\d-\d\d): (.+)$", re.M)


def test_the_log_has_the_newest_entry_first_and_all_of_them_in_its_index():
    entries = HEADING.findall(LOG)
    assert [int(number) for number, _, _ in entries] == list(range(len(entries), 0, -1))
    days = [day for _, day, _ in entries]
    assert days == sorted(days, reverse=True)
    index = " ".join(LOG.partition("## Index")[2].partition("<a id=")[0].split())
    listed = [f"[{n}](#e{n}) {day[5:]}: {verdict}" for n, day, verdict in entries]
    assert [line for line in listed if line not in index] == []
    assert all(f'<a id="e{n}"></a>' in LOG for n, _, _ in entries)


def test_every_entry_of_the_log_has_question_setting_result_and_decision():
    for body in HEADING.split(LOG)[4::4]:
        places = [
            body.find(f"\n**{part}.**") for part in ("Question", "Setting", "Result", "Decision")
        ]
        assert places == sorted(places), body[:80]
        assert places[0] >= 0, body[:80]


def test_results_that_the_log_names_are_there():
    texts = LOG + (ROOT / "benchmarks" / "paper.md").read_text()
    named = set(re.findall(r"results/[a-z-]+/[0-9-]+\.json", texts))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "benchmarks" / name).is_file()] == []


@pytest.mark.parametrize("name", ["benchmarks/LOG.md", "CHANGELOG.md"])
def test_lines_have_at_most_120_characters(name):
    lines = (ROOT / name).read_text().splitlines()
    assert [line for line in lines if len(line) > 120] == []
