"""What plans and reports have in common: plain values, JSON, and how notebooks show them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, ClassVar

from ..errors import shown
from . import html
from .amounts import blocks, format_time
from .memory import format_bytes

_COLORS = {"problems": html.RED, "warnings": html.ORANGE}  # texts that come before all else
_OF_HEADS = ("ok", *_COLORS)


@dataclass(frozen=True)
class Report:
    """A plan or a report, whose fields are plain values or dataclasses of them.

    The texts in them have no secrets of URLs.
    """

    _title: ClassVar[str] = "Report"  # in notebooks

    def __post_init__(self) -> None:
        for name, value in list(self.__dict__.items()):
            if isinstance(value, str):
                object.__setattr__(self, name, shown(value))
            elif isinstance(value, tuple) and all(isinstance(text, str) for text in value):
                object.__setattr__(self, name, tuple(map(shown, value)))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the fields as JSON."""
        return json.dumps(self.to_dict())

    def _picture(self) -> str:
        """Return what notebooks show above the fields, as HTML."""
        return ""

    def _repr_html_(self) -> str:
        """Return the report for a notebook."""
        title, color, ok = self._title, "inherit", getattr(self, "ok", None)
        if ok is not None:
            title += ": nothing is wrong" if ok else ": something is wrong"
            color = html.GREEN if ok else html.RED
        texts = (html.listed(getattr(self, name, ()), shade) for name, shade in _COLORS.items())
        rest = {name: value for name, value in self.__dict__.items() if name not in _OF_HEADS}
        return html.block(title, *texts, self._picture(), *_parts(rest), color=color)


def _parts(fields: dict[str, Any]) -> Iterator[str]:
    """Yield fields for a notebook: facts in two columns, then tables and reports in reports."""
    facts, below = [], []
    for name, value in fields.items():
        label, value = _label(name), getattr(value, "__dict__", value)
        if isinstance(value, tuple) and value and all(map(is_dataclass, value)):
            lines = [row.__dict__ for row in value]
            heads = [head for head in lines[0] if any(line[head] is not None for line in lines)]
            rows = [[_text(head, line[head]) for head in heads] for line in lines]
            below.append(html.block(label, html.table(list(map(_label, heads)), rows)))
        elif isinstance(fields[name], Report):
            below.append(fields[name]._repr_html_())
        elif name.endswith("_histogram") and value:
            drawn = blocks([n for _, n in value])
            facts.append((label, f"{drawn} from {value[0][0]:,} to {value[-1][0]:,} or more"))
        elif value not in (None, ()) and not _holds_bytes(value):
            facts.append((label, _text(name, value)))
    yield html.facts(facts)
    yield from below


def _holds_bytes(value: Any) -> bool:
    """Whether a value is of files' contents, and no text."""
    return isinstance(value, tuple) and any(isinstance(item, bytes) for item in value)


def _label(name: str) -> str:
    """Return the name of a field in words."""
    return "time" if name == "seconds" else re.sub(r"^n_|_bytes$", "", name).replace("_", " ")


def _text(name: str, value: Any) -> str:
    """Return the value of a field in words."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_bytes(value) if name.endswith("_bytes") else f"{value:,}"
    if isinstance(value, float):
        return format_time(value) if name == "seconds" else f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{_label(key)} {_text(key, one)}" for key, one in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(_text(name, item) for item in value)
    return str(value)
