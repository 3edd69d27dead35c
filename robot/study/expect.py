"""What a study's author expected, in a form that a program can check, and whether it came so."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

FORMS = {
    "arm": ("at_least", "at_most"),  # key that says the form -> keys that go with it
    "better": ("than", "by"),
    "same": ("as", "within"),
}


@dataclass(frozen=True)
class Expectation:
    """One row. `arm` reaches at_least or at_most; or `arm` exceeds `other` by at least `by`; or differs from
    it by at most `within`."""

    on: str
    """The variant."""
    arm: str
    metric: str = "success"
    """The success rate, or another number of an arm: `nfe`, `mode_entropy`, …"""
    other: str = ""
    at_least: float | None = None
    at_most: float | None = None
    by: float | None = None
    within: float | None = None

    @staticmethod
    def of(row: Mapping[str, Any], arms: Collection[str], variants: Collection[str]) -> Expectation:
        """From a row of the file. ValueError in a few words."""
        forms = [f for f in FORMS if f in row]
        if len(forms) != 1:
            raise ValueError(f"a row has one of {', '.join(FORMS)}, this one: {', '.join(row)}")
        form = forms[0]
        others = {"better": "than", "same": "as"}
        if unknown := sorted(set(row) - {"on", "metric", form, *FORMS[form]}):
            raise ValueError(f"a row with {form} has no key {unknown[0]!r}: it has {', '.join(FORMS[form])}")
        numbers = {k: row[k] for k in FORMS[form] if k in row and k not in others.values()}
        if form == "better":
            numbers = {"by": 0.0, **numbers}
        if not numbers or not all(type(v) in (int, float) for v in numbers.values()):
            raise ValueError(f"a row with {form} needs a number: {' or '.join(FORMS[form])}")
        other = str(row.get(others[form], "")) if form in others else ""
        for name in (row[form], *([other] if form in others else [])):
            if name not in arms:
                raise ValueError(f"there is no arm {name!r}: there is {', '.join(arms)}")
        if row["on"] not in variants:
            raise ValueError(f"there is no variant {row['on']!r}: there is {', '.join(variants)}")
        return Expectation(row["on"], row[form], str(row.get("metric", "success")), other, **numbers)

    def text(self) -> str:
        """In words."""
        what, on = "" if self.metric == "success" else f" in {self.metric}", f" ({self.on})"
        if self.by is not None:
            return f"{self.arm} better than {self.other} by {self.by:g}{what}{on}"
        if self.within is not None:
            return f"{self.arm} within {self.within:g} of {self.other}{what}{on}"
        bounds = [
            f"{word} {v:g}"
            for word, v in (("at least", self.at_least), ("at most", self.at_most))
            if v is not None
        ]
        return f"{self.arm} {' and '.join(bounds)}{what}{on}"

    def judge(
        self,
        arms: Mapping[str, Mapping[str, Any]],
        difference: Callable[[str, str], tuple[float, float, float]],
    ) -> dict[str, Any]:
        """`holds`: of what was measured. `certain`: whether the whole 95 % interval says the same, None
        where there is none, or it is of one training, which cannot say how trainings differ.

        arms: the results of the variant. difference: (mean, low, high) of one arm's success minus
        another's."""
        low = high = None
        measured = number(arms[self.arm], self.metric)
        if self.other and self.metric == "success":
            measured, low, high = difference(self.arm, self.other)
        elif self.other:
            other = number(arms[self.other], self.metric)
            measured = None if measured is None or other is None else measured - other
        elif self.metric == "success":
            low, high = arms[self.arm]["interval_95"]
        row = {**{k: v for k, v in asdict(self).items() if v not in (None, "")}, "text": self.text()}
        if measured is None:
            return {**row, "measured": None, "holds": False, "certain": None}
        holds = self._within(measured, measured)
        certain = None
        if low is not None and high is not None and len(arms[self.arm]["successes"]) > 1:
            certain = self._within(low, high) if holds else not self._touches(low, high)
        return {**row, "measured": round(measured, 6), "holds": holds, "certain": certain}

    def _range(self) -> tuple[float, float]:
        if self.within is not None:
            return -self.within, self.within
        low = self.by if self.by is not None else self.at_least
        return (
            -float("inf") if low is None else low,
            float("inf") if self.at_most is None else self.at_most,
        )

    def _within(self, low: float, high: float) -> bool:
        least, most = self._range()
        return least <= low + 1e-9 and high <= most + 1e-9

    def _touches(self, low: float, high: float) -> bool:
        least, most = self._range()
        return high >= least and low <= most


def number(arm: Mapping[str, Any], metric: str) -> float | None:
    """A number of an arm's results by its name; None where it has none of that name."""
    names = {"success": "success_rate", "nfe": "nfe_per_decision"}
    value = arm.get(names.get(metric, metric), arm.get("metrics", {}).get(metric))
    return float(value) if type(value) in (int, float) else None
