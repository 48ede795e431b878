"""Exports of open sources, with the sizes and the method that a test chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cellgraph_dask.export import run
from cellgraph_dask.export.run import ExportReport
from cellgraph_dask.plan.options import Options


def run_export(
    source: Any, out_dir: Path, *, method: Any = None, tuning: Any = None, **options: Any
) -> ExportReport:
    """Export an open source; see `Options` for the options."""
    return run.run_export(source, Options(out_dir, **options), method=method, tuning=tuning)
