"""Parquet files that threads write together: whatever the pieces, their order, interruptions."""

from __future__ import annotations

from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellgraph_dask.delivery import parquet
from cellgraph_dask.delivery.parquet import ParquetDelivery, read_files
from cellgraph_dask.delivery.parquet_files import ParquetFiles
from cellgraph_dask.runtime.progress import Progress
from cellgraph_dask.runtime.stage import Journal, ResumableExecutor
from cellgraph_dask.runtime.threads import Threads
from cellgraph_dask.source.matrix import Origin
from cellgraph_dask.stages.job import Job
from cellgraph_dask.stages.runs import Scratch

pytest.importorskip("pyarrow.parquet")


def job_of(folder, n_cells, *, weights):
    """Return a job whose scratch is in a folder."""
    source = SimpleNamespace(n_cells=n_cells, origin=Origin("memory"), key="obsp/c")
    return Job(source, Scratch(str(folder)), 8, "symmetric", "max", weights)


def executor_of(journal):
    """Return what runs tasks one after the other."""
    return ResumableExecutor(Threads(1, Progress()), journal)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 5, 12, 40, 95]), min_size=1, max_size=9),
    cuts=st.lists(st.floats(0, 1), max_size=9),
    done=st.sets(st.integers(0, 9)),
    file_rows=st.sampled_from([8, 20, 10**6]),
    row_group=st.sampled_from([4, 32]),
    weights=st.booleans(),
    late=st.booleans(),
    lost=st.booleans(),
)
@example([12, 2, 5, 5], [0.5], {0, 1}, 3, 4, False, False, True)  # a file ends with a piece
@example([12, 12, 40, 1, 5, 12, 12, 40], [0.5, 0.18], {0, 1, 2}, 20, 4, False, False, True)
@example([5, 1, 1], [0.5], {1}, 3, 4, False, False, False)  # a later file is known
def test_any_pieces(
    tmp_path_factory, lengths, cuts, done, file_rows, row_group, weights, late, lost
):
    folder = tmp_path_factory.mktemp("parquet")
    n_cells, n = len(lengths), sum(lengths)
    src = np.repeat(np.arange(n_cells, dtype=np.uint32), lengths)
    all_columns = [src, np.arange(n, dtype=np.uint32), np.arange(n) / 4][: 2 + weights]
    cuts = [0, *sorted(int(cut * n) for cut in cuts), n]
    counts = np.diff(cuts).tolist()
    job = job_of(folder, n_cells, weights=weights)

    def columns(k):
        return [column[cuts[k] : cuts[k + 1]] for column in all_columns]

    for name in ("whole", "parts"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "FILE_ROWS", file_rows)
        with closing(Journal(folder, "whole")) as journal:  # as on a cluster
            delivery = ParquetDelivery(job, folder / "whole", executor_of(journal))
            delivery._target = delivery._target.__class__(
                job, folder / "whole", (), (0,), row_group
            )
            for k in range(len(counts)):
                delivery.sink.write(k, *columns(k))
            n_bytes = delivery.finish(counts)

        def opened(journal):
            return ParquetFiles(job, folder / "parts", executor_of(journal), row_group=row_group)

        with closing(Journal(folder, "j")) as journal:  # only some pieces are finished
            files = opened(journal)
            places = [files.place(k, columns(k)[0]) for k in range(len(counts))]
            assert places == cuts[:-1]
            for k in done & set(range(len(counts))):
                files.write(places[k], *columns(k))
        made = sorted((folder / "parts").iterdir())
        if lost and made:
            made[0].write_bytes(b"damaged")
        with closing(Journal(folder, "j")) as journal:
            files = opened(journal)
            kept = {}
            for k in range(len(counts)):
                found = [np.zeros_like(column) for column in columns(k)]
                try:
                    files.read(places[k], *found)
                except EOFError:  # of a file that is not whole
                    continue
                assert k in done or not counts[k]
                assert all(np.array_equal(a, b) for a, b in zip(found, columns(k), strict=True))
                kept[k] = counts[k]
            files.keep(kept)
            rest = [k for k in range(len(counts)) if k not in kept]
            for k in rest:
                assert files.place(k, columns(k)[0]) == places[k]
            for k in reversed(rest) if late else rest:
                files.write(places[k], *columns(k))
            assert files.finish(counts) == n_bytes
    assert read_files(folder / "parts") == read_files(folder / "whole")
    found, wanted = (
        {path.name: path.read_bytes() for path in (folder / name).iterdir()}
        for name in ("parts", "whole")
    )
    assert found == wanted
