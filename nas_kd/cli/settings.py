"""A study's settings on the command line: ``--set KEY=VALUE``, their list in the help, what replaced old options."""

from __future__ import annotations

import difflib
import shlex
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from nas_kd.errors import UsageError

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="any key of a study file, below; repeatable"),
]

OF_SEARCH = {
    **{"--weights": "weights", "--lambda": "lmbda", "--teacher-z": "teacher_z", "--rank": "rank"},
    **{"--batch": "batch", "--lr": "lr", "--init": "init", "--warmup": "warmup"},
    **{"--crops": "crops", "--crop-size": "crop_size", "--anchor": "anchor", "--form": "form"},
    **{"--kd-x": "kd_x", "--kd-y": "kd_y", "--kd-z": "kd_z", "--sampler": "sampler"},
    **{"--from": "from_study", "--polish": "polish", "--early-stop": "early_stopping"},
}
"""Options of earlier versions and the keys that they set."""
OF_BOTH = {"--teacher": "teacher", "--data": "data", "--seed": "seed", "--crops": "crops"}
OF_OTHERS = {
    "warmup": OF_BOTH | {"--space": "space", "--steps": "warmup"},
    "distill": OF_BOTH
    | {"--steps": "steps", "--eval-data": "eval_data"}
    | {option: OF_SEARCH[option] for option in ("--weights", "--lambda", "--teacher-z")},
}


class WithSettings(TyperCommand):
    """A command that takes ``--set``: its help lists the keys, and old options say what replaced them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As usual, but for old options. Raises UsageError naming what to write in their place."""
        if not ctx.resilient_parsing and (said := replaced(str(self.name), args)):
            raise UsageError("; ".join(said))
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The keys of a study file, from their schema."""
        from nas_kd.schema import keys
        from nas_kd.study.settings import Settings

        with formatter.section("Settings, by --set KEY=VALUE or as KEY = VALUE in a study file"):
            formatter.write_dl(
                (one.name, f"{one.meaning} ({one.values}) {_default(one)}")
                for one in keys(Settings)
                if one.name != "name"
            )


def _default(one: Any) -> str:
    return f"[default: {one.default}]" if one.default else ""


def replaced(command: str, args: list[str]) -> list[str]:
    """For each option of an earlier version among the words of a command: what to write now."""
    known = OF_OTHERS.get(command, OF_SEARCH)
    found = []
    for place, word in enumerate(args):
        option, equals, value = word.partition("=")
        if not equals and option != "--early-stop":
            value = "".join(args[place + 1 : place + 2])
        now = _now(command, known, option, value)
        if now is not None:
            found.append(f"{option} {value}".rstrip() + f": now {now}")
    return found


def _now(command: str, known: dict[str, str], option: str, value: str) -> str | None:
    if option in known:
        value = "true" if option == "--early-stop" else value
        return f"--set {shlex.quote(f'{known[option]}={value}')}"
    if option == "--pool":
        return f"nas-kd cache --limit {value}, which holds for all that follows"
    if option == "--study" and command != "search":
        return f"nas-kd {command} {value}"
    if option == "--gpus-per-trial" and command == "search":
        return f"--trials-per-gpu {_trials(value)}"
    return None


def _trials(gpus_per_trial: str) -> str:
    try:
        share = float(gpus_per_trial)
        return str(max(1, round(1 / share)) if share else 0)
    except (ValueError, OverflowError):
        return "N, the number of trials that share a GPU"


def given(pairs: list[str] | None, **options: Any) -> dict[str, Any]:
    """The settings that were given, by options of their own (None: not given) and by ``--set``.

    Raises UsageError where a key is unknown, or given twice.
    """
    found = {key: value for key, value in options.items() if value is not None}
    for pair in pairs or ():
        key, text = _split(pair)
        if key in found:
            raise UsageError(f"--set {pair}: {key} is given twice; give it once")
        found[key] = _read(pair, key, text)
    return found


def _split(pair: str) -> tuple[str, str]:
    key, equals, text = pair.partition("=")
    if not equals:
        raise UsageError(f"--set {pair}: must be KEY=VALUE, such as --set kd_y=0.1")
    return key.strip(), text.strip()


def _read(pair: str, key: str, text: str) -> Any:
    from nas_kd.schema import keys, read
    from nas_kd.study.settings import Settings

    known = [one.name for one in keys(Settings) if one.name != "name"]
    if key not in known:
        near = difflib.get_close_matches(key.replace("-", "_"), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
        raise UsageError(f"--set {pair}: there is no key {key!r}; {hint}")
    return read(Settings, key, text)
