"""Reports in words, for the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..machine.amounts import blocks, counted, format_time
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
    "summed": "summed: split and merge, adding up repeated entries in float64",
    "signed": "signed: split and merge with weights, as some are negative",
}

# Of the record of a run, what tells a person which one it is; --json has all of it.
_OF_RUNS = ("source", "key", "out_dir", "scratch", "method", "compression", "started", "process",
            "version")  # fmt: skip


def rows(pairs: Iterable[tuple[str, str]]) -> str:
    """Lay out names and values in two columns."""
    return "\n".join(f"{name + ':':<16}{value}" for name, value in pairs)


def _in_options(thinning: dict[str, Any]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in thinning.items())


def edges_of_cells(report: Any) -> str:
    """Return the size of a graph."""
    return f"{counted(report.n_edges, 'edge')} of {counted(report.n_cells, 'cell')}"


def describe_run(report: Any, in_between: str, where: str) -> str:
    """Describe what an `ExportReport` says, in a line, and what was left out in another."""
    line = (
        f"{edges_of_cells(report)}{in_between} in {format_time(report.seconds)}, peak memory "
        f"{format_bytes(report.peak_memory_bytes)}: {where}"
    )
    return line if report.thinned is None else f"{line}\n{_describe_thinned(report.thinned)}"


def describe_plan(plan: ExportPlan) -> str:
    """Return a plan for a person to read."""
    facts = [
        ("matrix", f"{plan.key} of {plan.source}"),
        ("cells", f"{plan.n_cells:,}"),
        ("stored entries", f"{plan.n_entries:,}"),
        ("method", _METHODS[plan.method]),
        ("work", f"{counted(plan.n_blocks, 'block')}, {counted(plan.n_partitions, 'partition')}, "
                 f"{counted(plan.threads, 'thread')}"),
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


def _describe_thinned(thinned: Any) -> str:
    """Say what thinning has left out."""
    became = counted(thinned.n_became_isolated, "cell")
    text = f"Left out: {counted(thinned.n_dropped, 'edge')}; {became} without neighbors since then"
    if thinned.before is None or thinned.after is None:
        return f"{text}. Components were not counted."
    before, after = thinned.before, thinned.after
    return (
        f"{text}. The graph had {counted(before.n_components, 'component')}, the largest of "
        f"{counted(before.largest, 'cell')}; it has {after.n_components:,} now, the largest of "
        f"{after.largest:,}."
    )


def describe_graph(report: Any) -> list[tuple[str, str]]:
    """Describe the graph of a `VerifyReport`, as names and values."""
    if report.degree_quantiles is None:
        return []
    least, _, low, middle, high, _, most = report.degree_quantiles
    facts = [
        ("graph", edges_of_cells(report)),
        ("neighbors", f"{least:,} to {most:,} a cell, {report.mean_degree:.1f} on average; half of "
                      f"the cells have {low:,} to {high:,}, the median is {middle:,}"),
        *_run_of_blocks(report.degree_histogram, most),
        ("isolated", f"{counted(report.n_isolated, 'cell')} without neighbors"),
    ]  # fmt: skip
    if report.n_components is None:
        facts.append(("components", "not counted (--components counts them, if memory allows)"))
    elif report.n_components > 1:
        facts.append(
            ("components", f"{report.n_components:,}, the largest of "
                           f"{counted(report.largest_component, 'cell')}")
        )  # fmt: skip
    else:
        facts.append(("components", "1: the graph is connected"))
    if report.provenance is not None:
        made = report.provenance
        facts.append(("made from", f"{made.key} of {made.source}, by version {made.version}"))
    if report.thinning:
        facts.append(("thinned by", _in_options(report.thinning)))
    if report.alignment is not None:
        aligned = report.alignment
        facts.append(
            ("embedding", f"{aligned.value:.0%} of {aligned.n_sampled:,} sampled edges are shorter "
                          f"than a random pair in {aligned.embedding}")
        )  # fmt: skip
    facts += [("not checked", text) for text in report.unchecked]
    return facts


def _run_of_blocks(
    histogram: tuple[tuple[int, int], ...] | None, largest: int
) -> list[tuple[str, str]]:
    """Draw degrees in a line, if standard output can show it."""
    drawn = blocks([n for _, n in histogram or ()])
    try:
        drawn.encode(sys.stdout.encoding or "utf-8")
    except UnicodeError:
        return []
    if histogram is None or len(histogram) < 2:
        return []
    first, second, last = (histogram[k][0] for k in (0, 1, -1))
    end = last + second - first - 1
    more = f"{last:,} and more" if largest > end else f"{end:,}"
    return [("degrees", f"{drawn}  from {first:,} to {more}")]


def describe_verification(out_dir: str, report: Any) -> str:
    """Describe a `VerifyReport` that found nothing wrong."""
    facts = []
    if report.proof is not None:
        matrix = f"{report.key} of {report.source}"
        if report.thinning:
            matrix += f" that {_in_options(report.thinning)} keeps"
        facts.append(("edges", _PROOFS[report.proof].format(matrix)))
    facts += describe_graph(report)
    facts.append(
        (
            "time",
            f"{format_time(report.seconds)}, peak memory {format_bytes(report.peak_memory_bytes)}",
        )
    )
    first = (
        f"{out_dir} is sound: {edges_of_cells(report)}, at most "
        f"{counted(report.max_neighbors, 'neighbor')}."
    )
    return f"{first}\n{rows(facts)}"


def _describe_state(report: Any) -> list[tuple[str, str]]:
    """Say how far a run has come, and whether it is running."""
    facts = []
    *before, last = report.stages or (None,)
    if before:
        done = ", ".join(f"{stage.name} ({counted(stage.total, 'task')})" for stage in before)
        facts.append(("done", done))
    if last is not None:
        where = "is at" if report.running else "stopped at"
        facts.append((where, f"{last.name}: {last.done:,} of {counted(last.total, 'task')} done"))
    if report.running:
        facts.append(("running", f"yes: {report.run['process']}"))
    return facts


def describe_inspection(report: Any) -> str:
    """Describe an `InspectReport`."""
    if report.kind == "export":
        export = report.export
        head = f"{report.path} is an export" + ("." if export.ok else ", and it is damaged.")
        lines = [head, *filter(None, [rows(describe_graph(export))])]
        if report.run:
            started = report.run.get("started", "at an unknown time")
            states = {True: "is running", False: "was interrupted"}
            state = states.get(report.running, "was interrupted or is still running")
            lines.append(f"A run to replace it, started {started}, {state}.")
            lines += filter(None, [rows(_describe_state(report))])
        return "\n".join(lines)
    if report.kind == "scratch":
        run = report.run or {}
        facts = [(name.replace("_", " "), str(run[name])) for name in _OF_RUNS if name in run]
        facts += _describe_state(report)
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
            chunk = counted(matrix.chunk, "entry") if matrix.chunk else "none"
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
