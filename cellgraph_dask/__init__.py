"""Out-of-core export of AnnData neighbor graphs: edge files of cellucid, Parquet, symmetric CSR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .export.api import export_connectivities as export_connectivities
    from .export.api import plan_export as plan_export
    from .export.check import CheckReport as CheckReport
    from .export.check import check_connectivities as check_connectivities
    from .export.run import ExportReport as ExportReport
    from .export.symmetrize import symmetrize_connectivities as symmetrize_connectivities
    from .inspection import InspectReport as InspectReport
    from .inspection import inspect_path as inspect_path
    from .look.opened import ExportedGraph as ExportedGraph
    from .look.opened import open_export as open_export
    from .look.opened import plot_graph as plot_graph
    from .look.report import GraphReport as GraphReport
    from .look.report import report_export as report_export
    from .plan.plan import ExportPlan as ExportPlan
    from .source.blocks import read_connectivities as read_connectivities
    from .verify.api import verify_export as verify_export
    from .verify.checks import VerifyReport as VerifyReport
    from .verify.element import verify_element as verify_element

_HOME = {
    "CheckReport": "export.check",
    "ExportPlan": "plan.plan",
    "ExportReport": "export.run",
    "ExportedGraph": "look.opened",
    "GraphReport": "look.report",
    "InspectReport": "inspection",
    "VerifyReport": "verify.checks",
    "check_connectivities": "export.check",
    "export_connectivities": "export.api",
    "inspect_path": "inspection",
    "open_export": "look.opened",
    "plan_export": "export.api",
    "plot_graph": "look.opened",
    "read_connectivities": "source.blocks",
    "report_export": "look.report",
    "symmetrize_connectivities": "export.symmetrize",
    "verify_element": "verify.element",
    "verify_export": "verify.api",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that ``import cellgraph_dask`` stays instant."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
