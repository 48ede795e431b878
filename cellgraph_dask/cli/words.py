"""Reports in words, for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..machine.memory import format_bytes

if TYPE_CHECKING:
    from ..plan.plan import ExportPlan

_PROOFS = {
    "sums": "exactly those of {}, by sums of hashes",
    "comparison": "exactly those of {}, each one compared",
    "signed": "exactly those of {}, each one compared, with weights added up",
    "weights": "exactly those of {}, each one compared, with its weight",
}
_METHODS = {
    "symmetric": "symmetric: one pass, as the matrix looks symmetric",
    "general": "general: split and merge",
    "signed": "signed: split and merge with weights, as some are negative",
}

# Of the record of a run, what tells a person which one it is; --json has all of it.
_OF_RUNS = ("source", "key", "out_dir", "scratch", "method", "compression", "started", "process",
            "version")  # fmt: skip


def rows(pairs: Iterable[tuple[str, str]]) -> str:
    """Lay out names and values in two columns."""
    return "\n".join(f"{name + ':':<16}{value}" for name, value in pairs)


def describe_plan(plan: ExportPlan) -> str:
    """Return a plan for a person to read."""
    facts = [
        ("matrix", f"{plan.key} of {plan.source}"),
        ("cells", f"{plan.n_cells:,}"),
        ("stored entries", f"{plan.n_entries:,}"),
        ("method", _METHODS[plan.method]),
        ("work", f"{plan.n_blocks:,} blocks, {plan.n_partitions:,} partitions, "
                 f"{plan.threads} threads"),
        *_describe_files(plan),
        ("memory", f"{format_bytes(plan.projected_memory_bytes)} projected (of it "
                   f"{format_bytes(plan.reserved_memory_bytes)} reserved), limit "
                   f"{format_bytes(plan.memory_limit_bytes)}"),
        ("scratch", f"at most {format_bytes(plan.scratch_bytes)}, "
                    f"{format_bytes(plan.scratch_free_bytes)} free"),
        ("output", f"at most {format_bytes(plan.output_bytes)}, "
                   f"{format_bytes(plan.output_free_bytes)} free"),
    ]  # fmt: skip
    return "\n".join([rows(facts), *(f"Warning: {warning}" for warning in plan.warnings)])


def _describe_files(plan: ExportPlan) -> list[tuple[str, str]]:
    if plan.options.get("format") == "parquet":
        columns = f"{plan.index_dtype} src and dst"
        columns += ", float64 weight" if plan.options["weights"] else ""
        return [("Parquet files", f"{columns}; directions: {plan.options['directions']}")]
    compression = f"gzip level {plan.compression}" if plan.compression else "plain"
    return [
        ("edge files", f"{plan.index_dtype}, {compression}"),
        ("viewer", "that of cellucid 0.0.9; 0.9.1 and later do not read these files"),
    ]


def describe_thinned(thinned: Any) -> str:
    """Say what thinning has left out."""
    text = f"{thinned.n_dropped:,} edges were left out; "
    text += f"{thinned.n_became_isolated:,} cells became isolated"
    if thinned.before is None or thinned.after is None:
        return f"{text}. Components were not counted."
    return (
        f"{text}. The graph had {thinned.before.n_components:,} components, the largest of "
        f"{thinned.before.largest:,} cells; it has {thinned.after.n_components:,} now, the largest "
        f"of {thinned.after.largest:,}."
    )


def describe_graph(report: Any) -> list[tuple[str, str]]:
    """Describe the graph of a `VerifyReport`, as names and values."""
    if report.degree_quantiles is None:
        return []
    least, _, low, middle, high, _, most = report.degree_quantiles
    facts = [
        ("graph", f"{report.n_edges:,} edges of {report.n_cells:,} cells"),
        ("neighbors", f"{least:,} to {most:,} a cell, {report.mean_degree:.1f} on average; half of "
                      f"the cells have {low:,} to {high:,}, the median is {middle:,}"),
        ("isolated", f"{report.n_isolated:,} cells without neighbors"),
    ]  # fmt: skip
    if report.n_components is None:
        facts.append(("components", "not counted (--components counts them, if memory allows)"))
    elif report.n_components > 1:
        facts.append(
            ("components", f"{report.n_components:,}, the largest of {report.largest_component:,} "
                           "cells")
        )  # fmt: skip
    else:
        facts.append(("components", "1: the graph is connected"))
    if report.provenance is not None:
        made = report.provenance
        facts.append(("made from", f"{made.key} of {made.source}, by version {made.version}"))
    if report.alignment is not None:
        aligned = report.alignment
        facts.append(
            ("embedding", f"{aligned.value:.0%} of {aligned.n_sampled:,} sampled edges are shorter "
                          f"than a random pair in {aligned.embedding}")
        )  # fmt: skip
    facts += [("not checked", text) for text in report.unchecked]
    return facts


def describe_verification(out_dir: str, report: Any) -> str:
    """Describe a `VerifyReport` that found nothing wrong."""
    facts = []
    if report.proof is not None:
        matrix = f"{report.key} of {report.source}"
        if report.thinning:
            kept = (f"--{name.replace('_', '-')} {n}" for name, n in report.thinning.items())
            matrix += f" that {' '.join(kept)} keeps"
        facts.append(("edges", _PROOFS[report.proof].format(matrix)))
    facts += describe_graph(report)
    facts.append(
        ("time", f"{report.seconds:.1f} s, peak memory {format_bytes(report.peak_memory_bytes)}")
    )
    first = (
        f"{out_dir} is sound: {report.n_edges:,} edges of {report.n_cells:,} cells, at most "
        f"{report.max_neighbors:,} neighbors."
    )
    return f"{first}\n{rows(facts)}"


def describe_inspection(report: Any) -> str:
    """Describe an `InspectReport`."""
    if report.kind == "export":
        export = report.export
        head = f"{report.path} is an export" + ("." if export.ok else ", and it is damaged.")
        lines = [head, *filter(None, [rows(describe_graph(export))])]
        if report.run:
            started = report.run.get("started", "at an unknown time")
            lines.append(
                f"A run to replace it, started {started}, was interrupted or is still running."
            )
        return "\n".join(lines)
    if report.kind == "scratch":
        run = report.run or {}
        facts = [(name.replace("_", " "), str(run[name])) for name in _OF_RUNS if name in run]
        facts.append(("files", f"{report.n_files:,}, {format_bytes(report.n_bytes)} together"))
        head = f"{report.path} is the scratch folder of a run" + (
            ":" if run else " that left no record."
        )
        return f"{head}\n{rows(facts)}"
    kind = f"a zarr store, format {report.zarr_format}" if report.zarr_format else "an HDF5 file"
    lines = [f"{report.path} is {kind}."]
    if not report.matrices:
        lines.append("obsp holds no matrix; scanpy.pp.neighbors computes one.")
    for matrix in report.matrices:
        name = matrix.key if "/" in matrix.key else f"obsp/{matrix.key}"
        if matrix.problem:
            lines.append(f"{name}: {matrix.problem}")
            continue
        facts = [
            ("matrix", name),
            ("format", f"{matrix.format}, {' by '.join(f'{n:,}' for n in matrix.shape)}"),
        ]
        if matrix.n_entries is not None:
            chunk = f"{matrix.chunk:,} entries" if matrix.chunk else "none"
            shard = f" in shards of {matrix.shard:,}" if matrix.shard else ""
            facts += [
                ("stored entries", f"{matrix.n_entries:,}"),
                ("dtypes", f"weights {matrix.dtype}, indices {matrix.index_dtype}"),
                ("chunks", f"{chunk}{shard}, {matrix.codec or 'not compressed'}"),
            ]
        lines.append(rows(facts))
    if report.embeddings:
        lines.append(rows([("embeddings", ", ".join(report.embeddings))]))
    return "\n".join(lines)
