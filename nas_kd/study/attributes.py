"""What a study keeps besides its trials, typed: the one place that knows the names of a study's attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

from nas_kd.evaluation.bd_rate import RDCurve
from nas_kd.study.anchor import Anchor

Row = dict[str, Any]
"""An arch of another study, or of the first of two rounds, as JSON can hold it."""


class StudyAttributes:
    """The attributes of an Optuna study, read anew each time: other drivers write them too."""

    optuna: optuna.Study

    def _kept(self, name: str) -> Any:
        return self.optuna.user_attrs.get(name)

    @property
    def anchor(self) -> Anchor | None:
        """What students are compared with; None before it is known."""
        stored = self._kept("anchor")
        return None if stored is None else Anchor.from_json(stored)

    @property
    def baselines(self) -> Mapping[str, RDCurve]:
        """Classical codecs' curves on the evaluation pictures; none in studies of older versions."""
        anchor = self.anchor
        return {} if anchor is None else anchor.baselines

    def keep_anchor(self, anchor: Anchor) -> None:
        """Once: trials are comparable no longer than it stays."""
        self.optuna.set_user_attr("anchor", anchor.to_json())

    @property
    def sources(self) -> dict[str, str | None]:
        """Fingerprints of what the study rests on: teacher, data, eval_data."""
        return self._kept("sources") or {}

    def keep_sources(self, fingerprints: dict[str, str | None]) -> None:
        """See ``prepare.require_unchanged``."""
        self.optuna.set_user_attr("sources", fingerprints)

    @property
    def made_with(self) -> dict[str, str]:
        """Versions and machine of the latest search; empty in studies of older versions."""
        return self._kept("made_with") or {}

    def keep_made_with(self, versions: dict[str, str]) -> None:
        """As the search begins."""
        self.optuna.set_user_attr("made_with", versions)

    @property
    def warmup_steps(self) -> int | None:
        """Steps of the shared weights, where trials start from such."""
        return (self._kept("warmup") or {}).get("recipe", {}).get("steps")

    def keep_warmup(self, card: dict[str, Any]) -> None:
        """The card of the shared weights."""
        self.optuna.set_user_attr("warmup", card)

    @property
    def ranked(self) -> list[Row] | None:
        """The archs of the first round, best first, where there was one."""
        return self._kept("ranked")

    def keep_ranked(self, rows: list[Row]) -> None:
        """See ``ranking.in_order``."""
        self.optuna.set_user_attr("ranked", rows)

    @property
    def prior(self) -> list[Row] | None:
        """What another study found, where the settings name one and it was taken over."""
        return self._kept("prior")

    def keep_prior(self, rows: list[Row]) -> None:
        """See ``transfer.rows``."""
        self.optuna.set_user_attr("prior", rows)

    def keep_packing(self, measured: dict[str, Any]) -> None:
        """How many trials share a GPU, and what was measured for it."""
        self.optuna.set_user_attr("packing", measured)

    @property
    def polished(self) -> dict[int, Row]:
        """By trial, the steps, and the R-D points and values after them or the reason of none."""
        return {int(number): row for number, row in (self._kept("polished") or {}).items()}

    def keep_polished(self, number: int, row: Row) -> None:
        """Call it inside the study's lock: other drivers record theirs."""
        self.optuna.set_user_attr("polished", (self._kept("polished") or {}) | {str(number): row})

    @property
    def drivers(self) -> list[str]:
        """Those who drive it, some of whom may be dead."""
        return drivers_of(self.optuna)

    def keep_drivers(self, drivers: list[str]) -> None:
        """Call it inside the study's lock."""
        self.optuna.set_user_attr("drivers", drivers)


def drivers_of(study: optuna.Study) -> list[str]:
    """Those who drive a study that was found, some of whom may be dead."""
    return study.user_attrs.get("drivers") or []


def settings_of(study: optuna.Study) -> dict[str, Any] | None:
    """The settings that a study was begun with, as its version stored them; None of one that is not ours."""
    return study.user_attrs.get("settings")


def keep_settings(study: optuna.Study, settings: dict[str, Any]) -> None:
    """As the study is begun."""
    study.set_user_attr("settings", settings)
