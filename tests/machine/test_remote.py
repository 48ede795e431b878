"""URLs and paths, and what is told of storage that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellgraph_dask.errors import OutputError
from cellgraph_dask.machine import remote
from tests.helpers.flaky import Flaky


def test_urls_and_paths():
    assert remote.is_url("s3://b/a")
    assert not remote.is_url("file:///a")
    assert not remote.is_url("a/b")
    assert not remote.is_url(Path("s3://b/a"))
    assert remote.find_path("file:///a%20b") == Path("/a b")
    assert remote.find_path(Path("x")) == Path("x")
    mine, theirs = {"a": 1}, {"b": 2}
    choose = remote.default_options
    assert choose("s3://b/a", mine, "s3://c", theirs) == mine
    assert choose("s3://b/a", None, "s3://c", theirs) == theirs
    assert choose("s3://b/a", {}, "s3://c", theirs) == {}
    assert choose("s3://b/a", None, "gs://c", theirs) is None
    assert choose("out", None, "out.zarr", theirs) is None


def test_reading():
    Flaky.objects.clear()
    Flaky.restart()
    Flaky.objects["bucket/a/b"] = "細胞".encode()
    folder = remote.find_path("flaky://bucket/a/")
    assert str(folder) == "flaky://bucket/a"
    assert str(folder / "b") == "flaky://bucket/a/b"
    assert ((folder / "b").size(), folder.size(), (folder / "c").size()) == (6, None, None)
    assert [(folder / name).exists() for name in ("b", "c")] == [True, False]
    assert (folder / "b").read_text() == "細胞"
    with (folder / "b").open() as file:
        assert [file.read(4), file.read(-1)] == ["細胞".encode()[:4], "細胞".encode()[4:]]
    with pytest.raises(FileNotFoundError, match="it is not there, or the bucket is not"):
        (folder / "c").read_text()
    Flaky.restart(0, 1)
    with pytest.raises(OSError, match=r"step 0 fails.*flaky://bucket/a/b"):
        (folder / "b").read_text()
    Flaky.objects.clear()
    Flaky.restart()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError("b/a."), "it is not there, or the bucket is not (b/a)"),
        (PermissionError("Forbidden"), "access was denied (Forbidden)"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (ValueError("no region."), "ValueError: no region"),
        (ValueError(), "ValueError: ValueError"),
    ],
)
def test_what_an_error_says(error, text):
    assert remote.describe(error) == text


def test_a_bucket_alone_is_refused():
    for url in ("memory://", "memory:///"):
        with pytest.raises(OutputError, match="is not a folder; name one, such as memory://"):
            remote.find_path(url)
