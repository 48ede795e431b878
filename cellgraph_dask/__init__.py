"""Out-of-core export of AnnData neighbour graphs to the edge files of the Cellucid viewer."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .blocks import read_connectivities as read_connectivities
    from .examine import inspect_path as inspect_path
    from .examine import verify_export as verify_export
    from .export import ExportReport as ExportReport
    from .export import export_connectivities as export_connectivities
    from .export import plan_export as plan_export
    from .exported import ExportedGraph as ExportedGraph
    from .exported import open_export as open_export
    from .inspection import InspectReport as InspectReport
    from .plan import ExportPlan as ExportPlan
    from .verify import VerifyReport as VerifyReport

_HOME = {
    "ExportPlan": "plan",
    "ExportReport": "export",
    "ExportedGraph": "exported",
    "InspectReport": "inspection",
    "VerifyReport": "verify",
    "export_connectivities": "export",
    "inspect_path": "examine",
    "open_export": "exported",
    "plan_export": "export",
    "read_connectivities": "blocks",
    "verify_export": "examine",
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
