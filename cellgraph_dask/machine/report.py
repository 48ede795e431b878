"""What plans and reports have in common."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import shown


@dataclass(frozen=True)
class Report:
    """A plan or a report, whose fields are plain values or dataclasses of them.

    The texts in them have no secrets of URLs.
    """

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
