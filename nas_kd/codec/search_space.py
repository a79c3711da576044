"""SearchSpace, the set of archs that a study may try.

A search space is a TOML file: ``[vary]`` names what may vary and its choices, ``[arch]`` is a template
that refers to them as ``"$name"``::

    [vary]
    N = [16, 32, 64]

    [arch]
    M = 192
    hyper = "$N"
    ...
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from nas_kd.codec.arch import Arch, Choice, check_keys
from nas_kd.errors import SpaceError
from nas_kd.places import SHIPPED, shipped
from nas_kd.toml_file import read_table


@dataclass(frozen=True)
class SearchSpace:
    """A set of archs: the template ``arch`` with each ``$name`` in it taken from ``vary[name]``."""

    name: str
    vary: dict[str, tuple[Choice, ...]]
    template: dict[str, Any]

    @property
    def size(self) -> int:
        """Combinations of choices; distinct archs may be fewer, where an entry has no effect."""
        return math.prod(len(choices) for choices in self.vary.values())

    def arch(self, params: dict[str, Choice]) -> Arch:
        """The arch at one choice per varied name; raises SpaceError at a value outside its list."""
        for name, choices in self.vary.items():
            if name not in params:
                raise SpaceError(f"search space {self.name}: no value for {name}")
            if params[name] not in choices:
                raise SpaceError(
                    f"search space {self.name}: {name} = {params[name]!r} is not in {list(choices)}"
                )
        return Arch.from_json(_fill(self.template, params), where=f"{self.name}: arch")

    def suggest(self, trial: Any) -> Arch:
        """Let an Optuna trial choose (``suggest_int`` for even steps, else categorical)."""
        return self.arch({name: self._suggest(trial, name) for name in self.vary})

    def _suggest(self, trial: Any, name: str) -> Choice:
        choices = self.vary[name]
        step = even_step(choices)
        if step:
            return trial.suggest_int(name, choices[0], choices[-1], step=step)
        return trial.suggest_categorical(name, list(choices))

    def params_of(self, arch: Arch) -> dict[str, Choice] | None:
        """Choices that give this arch (the first choice where an entry has no effect), or None."""
        bound: dict[str, list[Any]] = {name: [] for name in self.vary}
        _bind(self.template, asdict(arch), bound)
        seen = [
            [c for c in choices if c in bound[name]] or [choices[0]]
            for name, choices in self.vary.items()
        ]
        tried = (dict(zip(self.vary, values, strict=True)) for values in product(*seen))
        return next((p for p in tried if self.arch(p) == arch.canonical()), None)

    def grid(self) -> Iterator[dict[str, Choice]]:
        """Every combination, the last name varying fastest."""
        for values in product(*self.vary.values()):
            yield dict(zip(self.vary, values, strict=True))

    def ends(self) -> list[dict[str, Choice]]:
        """The last choice of every name, and the first; choices stand smallest first."""
        return [{name: choices[end] for name, choices in self.vary.items()} for end in (-1, 0)]

    def extreme(self, largest: bool) -> Arch:
        """The arch at one of the ends."""
        return self.arch(self.ends()[0 if largest else 1])

    def corners(self, largest: bool) -> list[Arch]:
        """The extremes in size: one arch per combination of kinds (words)."""
        side = -1 if largest else 0
        choices = [c if isinstance(c[0], str) else (c[side],) for c in self.vary.values()]
        archs = [self.arch(dict(zip(self.vary, v, strict=True))) for v in product(*choices)]
        return list(dict.fromkeys(archs))

    def draw(self, seed: int, largest: float = 0.0) -> Arch:
        """A random arch: of each name any choice alike, but with the chance ``largest`` its largest number."""
        generator = random.Random(seed)
        params = {name: generator.choice(c) for name, c in self.vary.items()}
        for name, choices in self.vary.items():
            if generator.random() < largest and not isinstance(choices[-1], str):
                params[name] = choices[-1]
        return self.arch(params)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits over what may vary and the template."""
        # As templates of nas-kd 0.1 had it, so that their studies resume.
        template = {"shortcut": False} | self.template
        text = json.dumps([self.vary, template], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def even_step(choices: tuple[Choice, ...]) -> int | None:
    """The common distance of ascending whole numbers, or None."""
    if len(choices) < 2 or any(type(c) is not int for c in choices):
        return None
    steps = {int(b) - int(a) for a, b in zip(choices, choices[1:], strict=False)}
    return steps.pop() if len(steps) == 1 and min(steps) > 0 else None


def _fill(node: Any, params: dict[str, Choice]) -> Any:
    if isinstance(node, dict):
        return {key: _fill(value, params) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(value, params) for value in node]
    return params[node[1:]] if isinstance(node, str) and node.startswith("$") else node


def _bind(node: Any, value: Any, bound: dict[str, list[Any]]) -> None:
    """Collect what the template's names stand for in a value; ineffective entries may disagree."""
    if isinstance(node, dict):
        for key, child in node.items():
            _bind(child, value[key], bound)
    elif isinstance(node, list):
        # Lists of other lengths: an arch of another kind, which no choice gives.
        for child, entry in zip(node, value, strict=False):
            _bind(child, entry, bound)
    elif isinstance(node, str) and node.startswith("$"):
        bound[node[1:]].append(value)


def load_space(spec: str | Path) -> SearchSpace:
    """Read a search space: a TOML file, or the name of one in the ``search_spaces`` folder.

    Raises SpaceError naming the file, the key, the value and the rule.
    """
    path = _find(spec)
    data = read_table(path, SpaceError)
    check_keys(f"{path}: space", data, ("vary", "arch"))
    if not isinstance(data["vary"], dict):
        raise SpaceError(f"{path}: vary = {json.dumps(data['vary'], default=str)}: must be a table")
    vary = {name: _choices(path, name, value) for name, value in data["vary"].items()}
    used = set(_names(data["arch"]))
    if unknown := sorted(used - set(vary)):
        raise SpaceError(f"{path}: arch refers to ${unknown[0]}, which [vary] does not list")
    if unused := sorted(set(vary) - used):
        raise SpaceError(f"{path}: vary.{unused[0]} is used nowhere in [arch]; remove it")
    if isinstance(data["arch"], dict) and data["arch"].get("shortcut"):
        raise SpaceError(
            f'{path}: arch.shortcut: students have none any more; take the key out, and a trunk (stem = "trunk4")'
        )
    space = SearchSpace(path.stem, vary, data["arch"])
    _try_every_choice(space, path)
    return space


def _find(spec: str | Path) -> Path:
    if isinstance(spec, Path) or str(spec).endswith(".toml"):
        return shipped(Path(spec))
    folders = [base / "search_spaces" for base in (Path(), *SHIPPED)]
    found = next((f / f"{spec}.toml" for f in folders if (f / f"{spec}.toml").exists()), None)
    if found is None:
        known = sorted({p.stem for f in folders for p in f.glob("*.toml")})
        raise SpaceError(
            f"search space '{spec}': no such file; give a .toml file or one of {', '.join(known)}"
        )
    return found


def _choices(path: Path, name: str, value: Any) -> tuple[Choice, ...]:
    where = f"{path}: vary.{name} = {json.dumps(value, default=str)}"
    if not isinstance(value, list) or not value:
        raise SpaceError(f"{where}: must be a list of at least one choice")
    if any(not isinstance(v, (int, str, bool)) for v in value):
        raise SpaceError(f"{where}: choices are whole numbers, strings or booleans")
    if len({type(v) for v in value}) > 1:
        raise SpaceError(f"{where}: choices must all be of one type")
    if len(set(value)) < len(value):
        raise SpaceError(f"{where}: a choice stands twice")
    if type(value[0]) is not str and value != sorted(value):
        raise SpaceError(f"{where}: choices must stand smallest first")
    return tuple(value)


def _names(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _names(child)
    elif isinstance(node, str) and node.startswith("$"):
        yield node[1:]


def _try_every_choice(space: SearchSpace, path: Path) -> None:
    """Build an arch at each choice, so that a bad one is an error now and not in trial 150."""
    for side in (False, True):
        base = {name: choices[-1 if side else 0] for name, choices in space.vary.items()}
        for name, choices in space.vary.items():
            for choice in choices:
                data = _fill(space.template, base | {name: choice})
                Arch.from_json(data, where=f"{path}: arch")
