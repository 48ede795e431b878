"""Amounts as text: one form for each kind, singular and plural."""

from __future__ import annotations

import pytest

from cellgraph_dask.machine.amounts import blocks, clock, counted, format_rate, format_time
from cellgraph_dask.machine.memory import format_bytes


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 edges"), (1, "1 edge"), (2, "2 edges"), (1_000_000, "1,000,000 edges")],
)
def test_counts_have_their_noun(n, text):
    assert counted(n, "edge") == text
    assert counted(n, "entry") == text.replace("edges", "entries").replace("edge", "entry")


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (99_951, "100 kB"),
        (999_499, "999 kB"), (999_500, "1.0 MB"), (512_000_000, "512 MB"), (10**12, "1.0 TB"),
        (5 * 10**15, "5000 TB"),
    ],
)  # fmt: skip
def test_sizes(n, text):
    assert format_bytes(n) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.4, "0 edges/s"), (999, "999 edges/s"), (2500, "2.5 k edges/s"), (3.1e6, "3.1 M edges/s")],
)
def test_rates(rate, text):
    assert format_rate(rate, "edges") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1:00 min"), (185, "3:05 min"),
     (3599.7, "1:00 h"), (7385, "2:03 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert format_time(seconds) == text


@pytest.mark.parametrize(
    ("counts", "drawn"),
    [([], ""), ([0, 0], "▁▁"), ([5], "█"), ([0, 1, 500, 1000], "▁▂▅█"), ([7, 6, 1], "█▇▂")],
)
def test_a_run_of_blocks(counts, drawn):
    assert blocks(counts) == drawn


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (12, "0:12"), (725, "12:05"), (7385, "2:03:05")]
)
def test_a_clock(seconds, text):
    assert clock(seconds) == text
