"""Rules of the house: how long a file may be, and what no text may name. What may import what is in pyproject.toml."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "nas_kd").rglob("*.py"))


def layers() -> list[str]:
    """The wings and the ground floor's modules, the uppermost first, as the contract has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    named = " | ".join(contracts[0]["layers"]).split(" | ")
    return [name.removeprefix("nas_kd.") for name in named]


def test_every_module_has_a_place_in_the_contract_of_layers():
    tops = {p.relative_to(ROOT / "nas_kd").parts[0].removesuffix(".py") for p in MODULES}
    assert tops - {"__init__", "__main__"} == set(layers())


def test_every_wing_says_what_it_is():
    for folder in (p for p in (ROOT / "nas_kd").iterdir() if (p / "__init__.py").is_file()):
        text = (folder / "__init__.py").read_text()
        assert text.startswith('"""'), folder.name
        assert len(text) > 30, folder.name


def test_importing_the_package_is_light():
    code = "import sys, nas_kd; print(*{'torch', 'ray', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def _texts() -> list[Path]:
    folders = ("nas_kd", "tests", "search_spaces", "studies", "benchmarks", "docs", ".github")
    inside = [p for folder in folders for p in (ROOT / folder).rglob("*")]
    kinds = {".py", ".toml", ".md", ".yml", ".yaml", ".json", ".c", ".txt", ".cfg"}
    return [p for p in [*inside, *ROOT.glob("*")] if p.is_file() and p.suffix in kinds]


NAMES_ATTRIBUTES = {
    "record.py": "of trials",
    "attributes.py": "of studies",
    "telling.py": "carries all of a known trial's over",
    "study.py": "lines trials up again with them",
}


def test_what_is_stored_with_trials_and_studies_is_named_in_one_place():
    reading = {p.name for p in MODULES if "user_attrs" in p.read_text()}
    assert reading == set(NAMES_ATTRIBUTES)


def test_no_module_changes_the_working_folder():
    assert [p.name for p in MODULES if "chdir" in p.read_text()] == []


def test_no_file_is_long():
    lengths = {str(p): len(p.read_text().splitlines()) for p in MODULES}
    assert {name: n for name, n in lengths.items() if n > 500} == {}


def test_no_text_names_a_registry_host():
    # Put together here, so that this file does not name them either.
    hosts = ["py" + "pi.org", "python" + "hosted.org", "index" + "-url", "ana" + "conda.org"]
    texts = _texts()
    assert len(texts) > 20
    assert [p.name for p in texts if any(h in p.read_text().lower() for h in hosts)] == []
