"""Pictures: where edges are, in which colors, and what is said of them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.image import imread
from scipy.sparse import csr_matrix

from cellgraph_dask import export_connectivities, open_export, plot_graph
from cellgraph_dask.edge_pairs.format import Manifest
from cellgraph_dask.errors import InvalidExportError, MemoryLimitError, OutputError, SourceError
from cellgraph_dask.look import edges as look_edges
from cellgraph_dask.look import raster
from cellgraph_dask.look.figure import new_axes
from cellgraph_dask.look.picture import Picture, picture
from tests.helpers.command import run, run_process
from tests.helpers.stores import write_store

PIXELS = (50, 50)


def graph_of(pairs: Any, n_cells: int) -> csr_matrix:
    """Return the symmetric matrix of some edges."""
    pairs = np.array(pairs)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    return csr_matrix((np.ones(len(both), np.float32), both.T), shape=(n_cells, n_cells))


def near_graph(n: int = 400) -> tuple[csr_matrix, np.ndarray]:
    """Return cells in two groups, and edges between those that follow each other in x."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(n, 2)).astype(np.float32)
    places[n // 2 :] += 12
    order = np.argsort(places[:, 0])
    pairs = [(order[k], order[k + d]) for k in range(n - 3) for d in (1, 2, 3)]
    return graph_of(pairs, n), places


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Give a store, and exports of it in all formats."""
    folder = tmp_path_factory.mktemp("look")
    matrix, places = near_graph()
    store = write_store(folder / "cells.zarr", matrix, obsm={"X_umap": places, "spatial": places})
    export_connectivities(store, folder / "plain")
    export_connectivities(store, folder / "gzip", compression=3)
    export_connectivities(store, folder / "table", format="parquet", cells_table=True)
    export_connectivities(store, folder / "both", format="parquet", directions="both")
    return folder


def drawn(path: Any, **options: Any) -> Picture:
    return picture(path, **({"pixels": PIXELS, "threads": 2} | options))


def at(picture: Picture, x: float, y: float) -> tuple[int, int]:
    """Return row and column of the pixel of a place."""
    (x0, x1), (y0, y1) = picture.canvas.x_range, picture.canvas.y_range
    return int((y - y0) / (y1 - y0) * PIXELS[1]), int((x - x0) / (x1 - x0) * PIXELS[0])


@pytest.mark.parametrize("kind", ["plain", "gzip", "table", "both", "opened"])
def test_an_export_of_any_format_gives_the_same_counts(folder, kind, monkeypatch):
    monkeypatch.setattr(look_edges, "STRETCH_EDGES", 100)
    monkeypatch.setattr(raster, "SLAB_EDGES", 64)
    expected = drawn(folder / "cells.zarr").sums.counts
    if kind == "opened":
        with open_export(folder / "plain") as graph:
            found = drawn(graph)
    else:
        found = drawn(folder / kind)
    assert np.array_equal(2 * found.sums.counts, expected)  # it has each edge in both directions
    assert found.report.n_drawn == 3 * 397
    assert found.report.embedding == "obsm/X_umap"
    assert found.report.share_longer_than_chance < 0.05
    assert found.report.warnings == ()


def test_lines_go_from_cell_to_cell(tmp_path):
    places = np.array([[0, 0], [10, 0], [10, 10], [0, 10]], np.float64)
    store = write_store(tmp_path / "s.zarr", graph_of([(0, 1), (1, 3)], 4), obsm={"X_a": places})
    found = drawn(store)
    for x, y, n in [(5, 0, 2), (5, 5, 2), (2, 8, 2), (0, 5, 0), (5, 10, 0), (10, 5, 0), (3, 3, 0)]:
        row, column = at(found, x, y)
        around = found.sums.counts[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        assert around.max() == n, (x, y)
    assert found.report.n_drawn == 4


def test_a_shuffled_graph_is_seen_to_be_one(folder, tmp_path):
    matrix, places = near_graph()
    order = np.random.default_rng(1).permutation(len(places))
    store = write_store(tmp_path / "s.zarr", matrix, obsm={"X_umap": places[order]})
    found = drawn(store)
    assert 0.4 < found.report.share_longer_than_chance < 0.6
    assert found.caption.split()[0] in {str(n) for n in range(40, 60)}
    assert "does not look like one of the cells of obsm/X_umap" in found.report.warnings[0]
    right = drawn(folder / "cells.zarr")
    # Lines between the groups cover what was empty.
    assert (found.sums.counts > 0).sum() > 2 * (right.sums.counts > 0).sum()
    outcome = run("plot", store, "-o", tmp_path / "a.png", "--size", 300)
    assert outcome.exit_code == 0
    assert "Warning" in outcome.stderr


def test_cells_without_a_place_and_far_away_are_counted(tmp_path):
    matrix, places = near_graph()
    places[[3, 5]] = np.nan, np.inf
    places[7] = 1e6
    n_of = np.diff(matrix.indptr)
    store = write_store(tmp_path / "s.zarr", matrix, obsm={"X_umap": places})
    report = drawn(store).report
    both = 2 * matrix[3, 5]
    assert report.n_cells_without_place == 2
    assert report.n_edges_without_place == 2 * (n_of[3] + n_of[5]) - both
    assert report.n_drawn == matrix.nnz - report.n_edges_without_place
    assert report.n_cells_outside == 1
    assert "Left out: 2 cells" in report.caption
    assert "1 cell lies beyond" in report.caption


@pytest.fixture(scope="module")
def colored() -> AnnData:
    """Give three cells, two of them of one category, in colors of scanpy."""
    obs = pd.DataFrame(
        {"kind": pd.Categorical(["a", "a", "b"]), "depth": [0.0, 1.0, np.nan]}, index=[*"uvw"]
    )
    cells = AnnData(np.zeros((3, 1), np.float32), obs=obs)
    cells.obsm["X_umap"] = np.array([[0.0, 0], [10, 0], [10, 10]])
    cells.obsp["connectivities"] = graph_of([(0, 1), (1, 2)], 3)
    cells.uns["kind_colors"] = np.array(["#ff0000", "#0000ff"])
    return cells


def test_edges_have_the_color_of_their_category(colored):
    found = drawn(colored, color="kind")
    red, gray = (
        [total[at(found, *place)] for total in found.sums.sums] for place in [(5, 0), (10, 5)]
    )
    assert red == [2, 0, 0]
    assert gray[0] == gray[1] == gray[2] == pytest.approx(1.1)
    assert found.column.categories == ("a", "b")


def test_edges_have_the_mean_of_the_numbers_of_their_ends(colored):
    found = drawn(colored, color="depth")
    total, known = found.sums.sums
    assert total[at(found, 5, 0)] / known[at(found, 5, 0)] == 0.5
    assert known[at(found, 10, 5)] == 0


@pytest.mark.parametrize("background", ["white", "black"])
def test_the_file_shows_edges_on_the_background(folder, tmp_path, background):
    options = ("--background", background, "--size", "400x300", "--json", "--cells", 2)
    outcome = run("plot", folder / "plain", "-o", tmp_path / "a.png", *options)
    report = json.loads(outcome.stdout)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert report["size"] == [400, 300]
    assert report["cells"] == [100, 300]
    image = imread(tmp_path / "a.png")
    assert image.shape[:2] == (300, 400)
    plain = 1.0 if background == "white" else 0.0
    assert (image[[0, -1], [0, -1], :3] == plain).all()
    inside = image[60:200, 40:300, :3]
    assert 0.01 < (np.abs(inside - plain).max(-1) > 0.15).mean() < 0.9


@pytest.mark.parametrize("suffix", ["pdf", "svg"])
def test_files_in_other_formats_are_the_same_each_time(colored, tmp_path, suffix):
    for name in "ab":
        drawn(colored, color="kind", cells=[0]).save(tmp_path / f"{name}.{suffix}")
    one, other = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert one == other
    assert one.startswith(b"%PDF" if suffix == "pdf" else b"<?xml")


def test_highlighted_edges_are_those_of_the_cells(folder):
    matrix, places = near_graph()
    found = drawn(folder / "plain", cells=[17, 4])
    ends = {tuple(sorted(map(tuple, line.tolist()))) for line in found.lines}
    wanted = {
        tuple(sorted([tuple(places[cell].tolist()), tuple(places[other].tolist())]))
        for cell in (4, 17)
        for other in matrix[[cell]].indices
    }
    assert ends == wanted
    assert np.array_equal(found.marks, places[[4, 17]])
    assert found.report.cells == (4, 17)


def test_an_opened_export_gives_axes(folder):
    with open_export(folder / "plain") as graph:
        axes = graph.plot(size=300)
    assert axes.get_title(loc="left").startswith("1,191 edges of 400 cells")
    assert "obsm/X_umap" in axes.get_xlabel()
    assert axes.images
    from matplotlib.figure import Figure

    given = Figure().add_subplot()
    assert plot_graph(folder / "table", ax=given) is given
    assert given.images[0].get_array().shape[:2] == tuple(
        round(n) for n in given.get_window_extent().size[::-1]
    )


def test_the_pixels_of_the_edges_are_those_of_the_axes(folder):
    from matplotlib.figure import Figure

    found = picture(folder / "plain", size=(700, 500))
    box = new_axes(found, Figure).get_window_extent()
    assert (round(box.width), round(box.height)) == (found.canvas.width, found.canvas.height)


@pytest.mark.parametrize("name", ["points_2d.bin", "points_3d.bin.gz", "embeddings/0_2d.bin"])
def test_points_beside_an_export_are_found(folder, tmp_path, name):
    import gzip

    matrix, places = near_graph()
    export_connectivities(matrix, tmp_path / "out")
    dim = 3 if "3d" in name else 2
    raw = np.zeros((400, dim), "<f4")
    raw[:, :2] = places
    (tmp_path / "out/embeddings").mkdir()
    content = raw.tobytes()
    (tmp_path / "out" / name).write_bytes(gzip.compress(content) if ".gz" in name else content)
    found = drawn(tmp_path / "out")
    assert found.report.embedding == name
    assert np.array_equal(found.sums.counts, drawn(folder / "plain").sums.counts)
    (tmp_path / "out" / name).write_bytes(content[: 399 * 4 * dim] if ".gz" not in name else b"")
    with pytest.raises(SourceError, match=r"has places for (0|399) cells, but the graph has 400"):
        drawn(tmp_path / "out")


def test_what_is_missing_is_told_with_what_there_is(folder, tmp_path):
    matrix, places = near_graph()
    export_connectivities(matrix, tmp_path / "out")
    with pytest.raises(SourceError, match="beside the export there are no points"):
        drawn(tmp_path / "out")
    with pytest.raises(SourceError, match=r"no X_umpa, but X_umap, spatial; did you mean X_umap\?"):
        drawn(folder / "plain", embedding="X_umpa")
    assert drawn(folder / "plain", embedding="spatial").report.embedding == "obsm/spatial"
    assert drawn(tmp_path / "out", source=folder / "cells.zarr").report.embedding == "obsm/X_umap"
    other = write_store(tmp_path / "o.zarr", matrix, obsm={"X_umap": places[:9]})
    with pytest.raises(SourceError, match="obsm/X_umap has 9 rows for 400 cells"):
        drawn(folder / "plain", source=other)
    (tmp_path / "out/points_2d.bin").write_bytes(places.tobytes())
    with pytest.raises(SourceError, match="which store it was made from"):
        drawn(tmp_path / "out", color="leiden")


def test_an_unknown_column_is_told_with_those_that_are_like_it(colored):
    with pytest.raises(
        SourceError, match=r"has no column 'knid'; it has kind, depth. Did you mean 'kind'"
    ):
        drawn(colored, color="knid")


def test_a_cell_that_is_not_there_is_refused(folder):
    with pytest.raises(SourceError, match="there is no cell 400; cells are 0 to 399"):
        drawn(folder / "plain", cells=[3, 400])


def test_the_extra_is_named_where_it_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OutputError, match=r"pip install 'cellgraph-dask\[plot\]'"):
        drawn(folder / "plain")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("a.jpg", "has to end in .png, .pdf or .svg"),
        ("none/a.png", "does not exist; make the folder"),
        ("there.png", "is there already. Replace it with --force"),
        ("folder.png", "is not a file"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_drawn(
    folder, tmp_path, output, message
):
    (tmp_path / "there.png").write_bytes(b"mine")
    (tmp_path / "folder.png").mkdir()
    outcome = run("plot", folder / "plain", "-o", tmp_path / output)
    assert outcome.exit_code == 1
    assert message in outcome.stderr
    assert (tmp_path / "there.png").read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_is_replaced_with_force(folder, tmp_path):
    target = tmp_path / "a.png"
    target.write_bytes(b"mine")
    assert run("plot", folder / "plain", "-o", target, "--force", "--size", 200).exit_code == 0
    assert imread(target).shape[:2] == (200, 200)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_limit_that_is_too_small_names_one_that_will_do(folder):
    with pytest.raises(MemoryLimitError, match="too small for this picture") as refused:
        drawn(folder / "plain", memory_limit="50MB")
    assert drawn(folder / "plain", memory_limit=refused.value.needed_bytes).report.n_drawn == 1191


PAIR = graph_of([(0, 1)], 3)


@pytest.mark.parametrize(
    ("matrix", "places", "n_drawn"),
    [
        (csr_matrix((3, 3)), [[0, 0], [1, 1], [2, 2]], 0),
        (csr_matrix((1, 1)), [[0, 0]], 0),
        (csr_matrix((0, 0)), np.zeros((0, 2)), 0),
        (PAIR, np.full((3, 2), np.nan), 0),
        (PAIR, np.full((3, 2), 5), 2),
        (PAIR, [[1e300, 0], [1, 1], [0, 1]], 0),
        (PAIR, [[1e38, 0], [-1e38, 1], [0, 1e38]], 2),
        (PAIR, [[1e-40, 0], [5e-40, 1e-42], [2e-40, 1e-41]], 2),
        (csr_matrix(([-1.0, np.nan, 2, 0], ([0, 1, 1, 2], [1, 0, 1, 0])), shape=(3, 3)),
         [[0, 0], [1, 1], [2, 2]], 2),  # as they are stored, but for the diagonal and zeros
    ],
)  # fmt: skip
def test_graphs_and_places_of_any_kind_are_drawn(tmp_path, matrix, places, n_drawn):
    store = write_store(tmp_path / "s.zarr", matrix, obsm={"X_umap": np.array(places, float)})
    found = drawn(store)
    assert found.report.n_drawn == n_drawn
    assert (found.sums.counts.sum() > 0) == (n_drawn > 0)
    assert found.report.warnings == ()
    found.save(tmp_path / "a.png")


def test_an_export_at_a_url_is_drawn(folder):
    url = "memory://pictures/out"
    export_connectivities(folder / "cells.zarr", url)
    found = drawn(url)
    assert np.array_equal(found.sums.counts, drawn(folder / "plain").sums.counts)
    assert found.report.path == url


def test_a_store_that_was_written_again_since_the_export_is_told(tmp_path):
    matrix, places = near_graph()
    store = write_store(tmp_path / "s.zarr", matrix, obsm={"X_umap": places})
    export_connectivities(store, tmp_path / "out")
    assert drawn(tmp_path / "out").report.warnings == ()
    write_store(store, matrix, obsm={"X_umap": places})
    (warning,) = drawn(tmp_path / "out").report.warnings
    assert warning == f"{store} has been written again since the export was made from it."
    assert drawn(tmp_path / "out", source=store).report.warnings == ()  # that was asked for


def test_a_folder_of_something_else_is_told(tmp_path):
    with pytest.raises(SourceError, match="is neither an export nor a store"):
        drawn(tmp_path)
    with pytest.raises(SourceError, match="does not exist"):
        drawn(tmp_path / "none")


@pytest.mark.slow
def test_memory_stays_within_the_limit(tmp_path):
    """Of a process: the limit that a refusal names is enough, and is kept."""
    n, reach = 400_000, 10
    src = np.repeat(np.arange(n - reach, dtype="<u4"), reach)
    dst = src + np.tile(np.arange(1, reach + 1, dtype="<u4"), n - reach)
    manifest = Manifest(n, src.size, 2 * reach, None)
    (tmp_path / "out/connectivity").mkdir(parents=True)
    (tmp_path / "out/connectivity_manifest.json").write_text(manifest.to_json())
    for side, cells in (("src", src), ("dst", dst)):
        cells.tofile(tmp_path / "out" / manifest.path(side))
    angle = np.linspace(0, 6, n)
    kind = pd.Categorical(np.arange(n) // 50_000)
    cells = AnnData(obs=pd.DataFrame({"kind": kind}, index=np.arange(n).astype(str)))
    cells.obsm["X_umap"] = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    cells.write_h5ad(tmp_path / "cells.h5ad")

    command = ["plot", tmp_path / "out", "--source", tmp_path / "cells.h5ad", "--json", "-o",
               tmp_path / "a.png", "--color", "kind"]  # fmt: skip
    run_process(*command, "--force")  # compiles, maybe, which takes memory once
    refused = run_process(*command, "--force", "--memory-limit", "50MB")
    (least,) = re.findall(r"will do is (\d+)MB", refused.stderr)
    done = run_process(*command, "--force", "--memory-limit", f"{int(least) + 8}MB")
    report = json.loads(done.stdout)
    assert report["n_drawn"] == src.size
    assert report["peak_memory_bytes"] <= report["memory_limit_bytes"]


def test_edges_of_cells_that_do_not_exist_are_refused(folder, tmp_path):
    shutil.copytree(folder / "plain", tmp_path / "out")
    path = tmp_path / "out/connectivity/edges.dst.bin"
    raw = np.fromfile(path, "<u2")
    raw[-1] = 400
    raw.tofile(path)
    with pytest.raises(InvalidExportError, match="an edge is of cell 400, but there are 400 cells"):
        drawn(tmp_path / "out")


@pytest.mark.parametrize("size", ["12", "30000", "1200x", "x"])
def test_a_size_that_cannot_be_is_wrong_usage(folder, size):
    assert run("plot", folder / "plain", "--size", size).exit_code == 2
