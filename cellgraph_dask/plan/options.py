"""What the user asks of an export, checked once and handed on as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..delivery.products import EdgePairs, Product
from ..machine.files import absolute
from ..machine.memory import limit_bytes
from ..machine.remote import is_url, local_path, plain_name
from ..runtime.threads import check_threads
from ..stages.rules import RULES, Rule
from ..stages.wishes import ALL, Thinning

if TYPE_CHECKING:
    from distributed import Client

    from ..delivery.cells_table import CellsTable


Format = Literal["cellucid", "parquet"]
Directions = Literal["one", "both"]
FORMATS, DIRECTIONS = get_args(Format), get_args(Directions)


@dataclass(frozen=True, eq=False)
class Options:
    """The options of an export; `export.api.export_connectivities` explains them.

    Raises a ValueError if a number is outside its range.
    """

    out_dir: str | Path = field(repr=False)  # a path of this machine, or a URL as it was given
    compression: int | None = None
    weights: bool = False
    rule: Rule | None = None
    thinning: Thinning = ALL
    format: Format = "cellucid"
    directions: Directions = "one"
    cells_table: CellsTable | None = None  # what the table, or names of selected cells, are from
    memory_limit: int | str | None = None
    threads: int | None = None
    scratch_dir: str | Path | None = None  # an absolute path once it is here
    keep_scratch: bool = False
    force: bool = False
    resume: bool = False
    progress: bool | None = False
    client: Client | None = None  # None for threads of this process
    output_storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    made: Product | None = None  # what is to be made; by default edge files

    def __post_init__(self) -> None:
        if self.compression is not None and not 1 <= self.compression <= 9:
            raise ValueError(f"compression must be None or 1 to 9, not {self.compression}")
        if self.rule is not None and self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, not {self.rule!r}")
        self._check_format()
        check_threads(self.threads)
        limit_bytes(self.memory_limit)
        out_dir = plain_name(self.out_dir)
        object.__setattr__(self, "out_dir", out_dir if is_url(out_dir) else local_path(out_dir))
        if self.scratch_dir is not None:  # workers may have another working directory
            object.__setattr__(self, "scratch_dir", absolute(local_path(self.scratch_dir)))

    def _check_format(self) -> None:
        for name, kinds in (("format", FORMATS), ("directions", DIRECTIONS)):
            if getattr(self, name) not in kinds:
                raise ValueError(
                    f"{name} must be one of {', '.join(kinds)}, not {getattr(self, name)!r}"
                )
        if self.format == "parquet" and self.compression is not None:
            raise ValueError("compression is for gzip files of cellucid; Parquet has its own")
        if self.format != "parquet":
            if self.directions != "one":
                raise ValueError("directions are for format='parquet'; cellucid has each edge once")
            if self.cells_table is not None and self.cells_table.selection is None:
                raise ValueError("the table of cells is for format='parquet'")

    @property
    def product(self) -> Product:
        """What is to be made."""
        if self.made is not None:
            return self.made
        if self.format == "parquet":
            from ..delivery.parquet_product import ParquetFolder  # of the extra `parquet`

            both = self.directions == "both"
            return ParquetFolder(self.weights, self.rule, both, self.cells_table, self.thinning)
        return EdgePairs(
            self.compression, self.weights, self.rule, thinning=self.thinning,
            cells=self.cells_table,
        )  # fmt: skip
