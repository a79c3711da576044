"""Dataclasses that pydantic checks, strictly; what breaks a rule told in one line, their keys read and listed."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, NamedTuple

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from nas_kd.errors import StudyError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""No text where a number is due, no 1.5 as a whole number, no NaN, no key that nobody knows."""
SHOWN = 60
"""Characters of a value that a message shows."""


@dataclass(frozen=True, config=STRICT)
class Checked:
    """A base whose heirs raise StudyError with every key that breaks its rule: value, rule."""

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, given: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(given)
        except ValidationError as error:
            raise StudyError(_told(cls, error)) from None


def _told(cls: type, error: ValidationError) -> str:
    names = list(inspect.signature(cls).parameters)
    found: dict[str, str] = {}
    for one in error.errors():
        first = one["loc"][0]
        key = names[first] if isinstance(first, int) else str(first)
        found.setdefault(key, _line(cls, key, one))
    return "; ".join(found.values())


def _line(cls: type, key: str, error: Any) -> str:
    match error["type"]:
        case "missing":
            return f"{key} is missing: {_rule_of(cls, key)}"
        case "unexpected_keyword_argument":
            return (
                f"{key}: no such key; the keys are {', '.join(inspect.signature(cls).parameters)}"
            )
        case "value_error":  # a rule of our own, which says the value as well
            return str(error["ctx"]["error"])
    return f"{key} = {shown(error['input'])}: {_rule_of(cls, key)}"


def says(meaning: str) -> Any:
    """What a key means, in a line, for the lists of keys."""
    return Field(title=meaning)


class Key(NamedTuple):
    """A key as people see it: name, what its values may be, its default and its meaning."""

    name: str
    values: str
    default: str
    meaning: str


def keys(cls: type) -> list[Key]:
    """The keys of a checked dataclass that say what they mean."""
    defaults = {field.name: field.default for field in fields(cls)}
    return [
        Key(name, in_words(about), default_in_words(defaults[name]), about["title"])
        for name, about in _properties(cls).items()
    ]


def default_in_words(value: Any) -> str:
    """A default as one would write it."""
    if value is MISSING:
        return ""
    if isinstance(value, tuple):
        return ",".join(value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def read(cls: type, key: str, text: str) -> Any:
    """The value that a text on the command line means for a key, unchecked: a number, a list by comma, a text."""
    schema = _properties(cls)[key]
    parts = schema.get("anyOf", [schema])
    kinds = {part.get("type", "string") for part in parts} - {"null"}
    if kinds == {"string"}:
        return text
    for convert in (int, float, _of_toml):
        with suppress(ValueError):  # what TOML raises is one, too
            return convert(text)
    return text.split(",") if kinds == {"array"} else text


def _of_toml(text: str) -> Any:
    (value,) = tomllib.loads(f"value = {text}").values()
    return value


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + " ..."


@cache
def _properties(cls: type) -> dict[str, Any]:
    return TypeAdapter(cls).json_schema()["properties"]


def _rule_of(cls: type, key: str) -> str:
    return f"must be {in_words(_properties(cls)[key])}"


def in_words(schema: dict[str, Any]) -> str:
    """A JSON schema's type and range: ``a whole number of at least 16``."""
    if "description" in schema:
        return schema["description"]
    if "anyOf" in schema:
        return next(in_words(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    match schema["type"]:
        case "boolean":
            return "true or false"
        case "string":
            return "a text"
        case "array":
            return f"a list, each entry {in_words(schema['items'])}"
        case kind:
            return _of_number("a whole number" if kind == "integer" else "a number", schema)


def _of_number(kind: str, schema: dict[str, Any]) -> str:
    multiple, low, high = (schema.get(k) for k in ("multipleOf", "minimum", "maximum"))
    if multiple is not None:
        kind = f"a multiple of {multiple}"
    if "exclusiveMinimum" in schema:
        return f"{kind} above {schema['exclusiveMinimum']:g}"
    if high is not None:
        return f"{kind} from {low:g} to {high:g}"
    return kind if low is None else f"{kind} of at least {low:g}"
