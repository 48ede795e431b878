"""Source and output are not inside each other."""

from __future__ import annotations

import pytest

from cellgraph_dask import export_connectivities, plan_export
from cellgraph_dask.errors import OutputError
from cellgraph_dask.publish.apart import check_apart
from tests.helpers.stores import snapshot, symmetric_graph, write_store
from tests.oracle import assert_exported

GRAPH = symmetric_graph()


@pytest.mark.parametrize(
    "inside", ["", "out", "obsp/connectivities", "obsp/connectivities/indptr/deep/er", "../l/out"]
)
@pytest.mark.parametrize("what", ["output", "scratch"])
def test_what_is_made_inside_the_source_is_refused(tmp_path, inside, what):
    source = write_store(tmp_path / "s.zarr", GRAPH)
    (tmp_path / "l").symlink_to(source)
    place = source / inside
    out_dir, scratch = (place, None) if what == "output" else (tmp_path / "out", place)
    before = snapshot(source)
    for call in (plan_export, export_connectivities):
        with pytest.raises(OutputError, match="is inside the store"):
            call(source, out_dir, scratch_dir=scratch)
    with pytest.raises(OutputError, match="is inside the store"):
        export_connectivities(f"file://{source}", out_dir, scratch_dir=scratch, force=True)
    assert snapshot(source) == before


def test_a_group_in_a_larger_store(tmp_path):
    import zarr

    zarr.open_group(tmp_path / "sd.zarr", mode="w")
    source = write_store(tmp_path / "sd.zarr/tables", GRAPH)
    with pytest.raises(OutputError, match="is inside the store"):
        plan_export(source, tmp_path / "sd.zarr/out")
    with pytest.raises(OutputError, match="is inside the store"):
        plan_export(zarr.open_group(source, mode="r"), source / "out")


@pytest.mark.usefixtures("leaves_scratch")
@pytest.mark.parametrize("inside", [".cellgraph-dask", "connectivity", "connectivity/deeper"])
def test_a_source_where_files_are_made_and_deleted_is_refused(tmp_path, inside):
    (tmp_path / "out" / inside).mkdir(parents=True)
    source = write_store(tmp_path / "out" / inside / "s.zarr", GRAPH)
    before = snapshot(tmp_path)
    for call in (plan_export, export_connectivities):
        with pytest.raises(OutputError, match="of the output folder, where files are made"):
            call(source, tmp_path / "out")
    assert snapshot(tmp_path) == before


def test_beside_each_other(tmp_path):
    source = write_store(tmp_path / "s.zarr", GRAPH)
    for out_dir in (tmp_path, tmp_path / "s.zarr.out", tmp_path / "s"):
        export_connectivities(source, out_dir, scratch_dir=tmp_path)
        assert_exported(out_dir, GRAPH)


@pytest.mark.parametrize(
    ("source", "out_dir", "refused"),
    [
        ("s3://b/s.zarr", "s3://b/s.zarr", True),
        ("s3://b/s.zarr", "s3://b/x/../s.zarr//out/", True),
        ("https://…@h/s.zarr", "https://me:word@h/s.zarr/out?x=y", True),
        ("s3://b/s.zarr", "s3://b/s.zarr.out", False),
        ("s3://b/s.zarr", "s3://b", False),
        ("s3://b/s.zarr", "gs://b/s.zarr/out", False),
        ("s3://b/s.zarr", "b/s.zarr/out", False),
        ("csr_matrix in memory", "s3://b/out", False),
    ],
)
def test_urls(source, out_dir, refused):
    if not refused:
        check_apart(source, None, out_dir, None)
        return
    with pytest.raises(OutputError, match="is inside the store"):
        check_apart(source, None, out_dir, None)
