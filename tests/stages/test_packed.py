"""Runs of the split hold what was written, by partition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellgraph_dask.stages import packed
from cellgraph_dask.stages.packed import LOWER, ROWS, UPPER, Layout, PackedReader, write_packed
from cellgraph_dask.stages.runs import holds

NARROW = np.dtype(np.uint16)


def made(counts, n_bands, weighted, rng):
    """Return a layout, sections with any values, and where partitions start in them.

    `counts` are, of each partition, upper entries, rows and lower entries of each band.
    """
    weight = {"weight": np.dtype(np.float64)} if weighted else {}
    columns = ({"dst": np.dtype(np.uint32)} | weight, {"src": NARROW, "row": NARROW} | weight,
               {"n": np.dtype(np.uint32)})  # fmt: skip
    counts = np.array(counts).reshape(-1, 2 + n_bands)
    of_section = [counts[:, 0], counts[:, 2:].ravel(), counts[:, 1]]
    starts = [np.concatenate(([0], np.cumsum(of))) for of in of_section]
    sections = [
        {name: rng.integers(0, 2**16, int(begin[-1])).astype(of) for name, of in some.items()}
        for some, begin in zip(columns, starts, strict=True)
    ]
    return Layout(columns, len(counts), n_bands), sections, starts


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_range_of_partitions(tmp_path_factory, data):
    """Whatever was written at once, and however much the system reads in one call."""
    n, n_bands = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    counts = data.draw(
        st.lists(st.sampled_from([0, 0, 1, 5, 40]), min_size=n * (2 + n_bands),
                 max_size=n * (2 + n_bands))
    )  # fmt: skip
    rng = np.random.default_rng(0)
    layout, sections, starts = made(counts, n_bands, data.draw(st.booleans()), rng)
    path = tmp_path_factory.mktemp("packed") / "split-0.run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "PACKED_BYTES", data.draw(st.sampled_from([1, 300, 10**6])))
        patch.setattr("cellgraph_dask.machine.files._MOST_PARTS", data.draw(st.integers(1, 9)))
        written = write_packed(path, layout, sections, starts)
        assert holds(path, written)
        first = data.draw(st.integers(0, n - 1))
        last = data.draw(st.integers(first + 1, n))
        with PackedReader(path, layout) as run:
            table = run.table(first, last)
            run.begin_reading(table)
            found = packed.starts_of(table[None], LOWER)[0]
            assert found.tolist() == starts[LOWER][first * n_bands : last * n_bands + 1].tolist()
            spans = [
                (
                    int(packed.starts_of(table[None], s)[0][0]),
                    int(packed.starts_of(table[None], s)[0][-1]),
                )
                for s in (UPPER, LOWER, ROWS)
            ]
            out = [
                {name: np.zeros(2 + b - a, column.dtype) for name, column in section.items()}
                for (a, b), section in zip(spans, sections, strict=True)
            ]
            run.read(table, out, [1, 1, 1])  # behind what is there
            for (a, b), section, read in zip(spans, sections, out, strict=True):
                for name, column in section.items():
                    assert read[name][1:-1].tolist() == column[a:b].tolist()
                    assert not read[name][[0, -1]].any()
            one = run.table(first, first + 1)
            for s, section in enumerate(sections):
                a, b = packed.starts_of(one[None], s)[0][[0, -1]].tolist()
                for name, column in section.items():
                    part = np.empty(b - a - (b > a), column.dtype)
                    run.read_column(one, s, name, int(b > a), part)
                    assert part.tolist() == column[a + (b > a) : b].tolist()


def test_a_run_that_ends_too_early(tmp_path):
    layout, sections, starts = made([3, 2, 4, 5, 1, 2], 1, True, np.random.default_rng(0))
    path = tmp_path / "split-0.run"
    written = write_packed(path, layout, sections, starts)
    with path.open("r+b") as file:
        file.truncate(written.n_bytes - 1)
    assert not holds(path, written)
    with PackedReader(path, layout) as run, pytest.raises(EOFError, match="the file ends at byte"):
        run.read(run.table(0, 2), sections, [0, 0, 0])
