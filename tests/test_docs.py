import ast
import re
import runpy
import shlex
import textwrap
from functools import cache
from types import SimpleNamespace

import pytest
from docs_pages import PAGES, ROOT
from typer.main import get_command

import nas_kd
from nas_kd.cli.main import app
from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.reasons import Reason
from nas_kd.schema import keys
from nas_kd.study.settings import Settings, default_space


def code_lines(text):
    """The lines of code blocks, indented or fenced, and of inline code."""
    fenced = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    indented = re.findall(r"(?:^|(?<=\n))    (.*)", text)
    inline = re.findall(r"`([^`\n]+)`", text)
    return [line.strip() for part in [*fenced, *indented, *inline] for line in part.splitlines()]


def commands():
    lines = {line for page in PAGES for line in code_lines(page.read_text())}
    # A bare name such as `nas-kd search` is a mention, and COMMAND a placeholder.
    return sorted(x for x in lines if x.startswith("nas-kd ") and " COMMAND" not in x)


def leaves(command, name="nas-kd"):
    """Every command that can be run, with its full name."""
    if not hasattr(command, "commands"):
        return {name: command}
    found = {}
    for child, part in command.commands.items():
        found |= leaves(part, f"{name} {child}")
    return found


def is_mention(line):
    names = leaves(get_command(app))
    return line in names or any(name.startswith(f"{line} ") for name in names)


@pytest.mark.parametrize("line", [c for c in commands() if not is_mention(c)])
def test_a_documented_command_is_one_that_the_command_line_takes(line, monkeypatch):
    monkeypatch.setenv("NAS_KD_STORAGE", "sqlite://")  # no study of its name need be here
    words = shlex.split(line, comments=True)[1:]
    command, context = get_command(app), None
    if any(words[0] in parameter.opts for parameter in command.params):
        return
    while hasattr(command, "commands"):
        context = command.make_context(None, list(words), parent=context, resilient_parsing=True)
        _, command, words = command.resolve_command(context, words)
    command.make_context(command.name, list(words), parent=context)


def test_the_check_refuses_what_does_not_exist():
    command = leaves(get_command(app))["nas-kd front"]
    with pytest.raises(Exception, match="No such option"):
        command.make_context("front", ["study", "--nonsense"])


def test_there_are_commands_to_check():
    assert len(commands()) > 25


@pytest.mark.parametrize("name", leaves(get_command(app)))
def test_every_command_and_every_option_is_documented(name):
    text = "\n".join(page.read_text() for page in PAGES)
    assert name in text
    for parameter in leaves(get_command(app))[name].params:
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                assert re.search(rf"{option}\b(?!-)", text), f"{name} {option}"


def section(name):
    """What docs/commands.md says under a command's heading, which may name several."""
    parts = re.split(r"^## ", (ROOT / "docs" / "commands.md").read_text(), flags=re.M)
    found = [p for p in parts if re.search(rf"{name}\b(?! [a-z])", p.splitlines()[0])]
    assert len(found) == 1, name
    return found[0]


@pytest.mark.parametrize("name", leaves(get_command(app)))
def test_a_commands_own_section_has_its_options(name):
    said = section(name)
    for parameter in leaves(get_command(app))[name].params:
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                assert re.search(rf"{option}\b(?!-)", said), f"{name} {option}"


def test_the_defaults_in_the_table_are_the_settings():
    rows = dict(re.findall(r"^\| `--([\w-]+)` \| (\S+) \|", section("nas-kd search"), re.M))
    defaults = {one.name: one.default for one in keys(Settings)}
    own = {option: said for option, said in rows.items() if option.replace("-", "_") in defaults}
    assert len(own) > 10
    defaults |= {"space": default_space(Settings.teacher), "name": "space-teacher"}
    assert {o: s for o, s in own.items() if s != defaults[o.replace("-", "_")]} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_link_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    inside = [t for t in targets if "://" not in t]
    assert [t for t in inside if not (page.parent / t).exists()] == []


def test_every_module_and_every_wing_is_on_the_architecture_page():
    page = (ROOT / "docs" / "architecture.md").read_text()
    modules = [p for p in (ROOT / "nas_kd").rglob("*.py") if not p.stem.startswith("__")]
    assert {p.stem for p in modules if not re.search(rf"`{p.stem}`", page)} == set()
    wings = {p.parent.name for p in modules} - {"nas_kd"}
    assert {w for w in wings if f"### {w}\n" not in page} == set()


def test_every_command_has_an_example_in_its_help():
    for name, command in leaves(get_command(app)).items():
        assert f"Example: {name}" in (command.help or ""), name


QUESTIONS = (ROOT / "docs" / "questions.md").read_text()
FOREIGN = {"sphinx-build: not found", "make docs"}
"""Quoted on the page of troubles, and not ours."""
HOLE = "\0"


@cache
def said_in_code():
    """Every text in the package, with a hole for each value that is put into it."""
    found = []
    for path in (ROOT / "nas_kd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", HOLE) for part in node.values)
                found.append("".join(part if isinstance(part, str) else HOLE for part in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def is_said(message):
    """Whether the longest run of a message between its figures and dots stands in the code."""
    longest = max(re.split(r"\.\.\.|\d+", message), key=len)
    return any(longest in text for text in said_in_code())


def quoted_troubles():
    bold = re.findall(r"\*\*(.+?)\*\*", (ROOT / "docs" / "troubleshooting.md").read_text(), re.S)
    return [message for heading in bold for message in re.findall(r"`([^`]+)`", heading)]


@pytest.mark.parametrize("message", [m for m in quoted_troubles() if m not in FOREIGN])
def test_a_message_quoted_among_the_troubles_is_one_that_the_code_says(message):
    assert is_said(message)


def test_a_message_that_nobody_says_any_more_would_be_found():
    assert len(quoted_troubles()) > 7
    assert is_said("study ...: steps = 500, but it was begun with 250")
    assert not is_said("another process is " + "searching it")


def test_every_reason_that_the_docs_explain_is_one_of_the_codes():
    page = (ROOT / "docs" / "measuring.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.M)
    reasons = [reason for row in rows for reason in re.findall(r"`(\w+)`", row)]
    assert len(reasons) > 5
    assert set(reasons) <= {reason.value for reason in Reason}


def test_the_pages_say_of_which_version_they_are():
    said = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    assert said["release"] == nas_kd.__version__
    assert said["html_title"].endswith(nas_kd.__version__)


def test_the_comparison_with_a_codec_of_ones_own_runs_as_it_stands(monkeypatch, capsys):
    block = re.search(r"(?:^    [^\n]*\n|^\n)*^    mine = .*\n(?:^    .*\n)*", QUESTIONS, re.M)
    assert block is not None
    student = RDCurve((0.2, 0.4, 0.7, 1.1), (28.4, 30.9, 33.5, 36.2))
    measured = SimpleNamespace(curve=lambda: student)
    monkeypatch.setattr(nas_kd, "evaluate", lambda folder, data: measured)
    exec(textwrap.dedent(block[0]), {})
    value, reason = capsys.readouterr().out.split()
    assert -5 < float(value) < 5
    assert reason == "None"
