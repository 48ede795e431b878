"""Other programs read the Parquet files, by the lines that the guide shows, and agree.

They need not be installed here: the interpreter of another environment that has some of them may be
named in ``CELLGRAPH_READERS``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellgraph_dask import export_connectivities, open_export
from cellgraph_dask.delivery import parquet

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs/guide/parquet.md"
N = 400
NEEDS = {
    "DuckDB": ["duckdb"],
    "Gephi and Cytoscape": ["duckdb"],
    "cuGraph": ["cudf", "cugraph"],
    "PyTorch Geometric": ["polars", "torch", "torch_geometric"],
    "networkit": ["networkit", "polars"],
    "igraph": ["igraph", "polars"],
    "Cosmograph": ["cosmograph", "pandas", "pyarrow"],
}
TELL = {
    "DuckDB": """
((n, w),) = duckdb.sql("SELECT count(*), sum(weight) FROM edges").fetchall()
counts = dict(degrees.fetchall())
tell(n / 2, w / 2, [counts.get(k, 0) for k in range(N)])
assert named.fetchall()[0] == (f"c{max(counts, key=counts.get)}", max(counts.values()))
""",
    "Gephi and Cytoscape": """
lines = open("edges.csv").read().splitlines()
assert lines[0] == "Source,Target,Weight"
rows = [line.split(",") for line in lines[1:]]
ends = [int(cell) for row in rows for cell in row[:2]]
tell(len(rows), sum(float(row[2]) for row in rows), [ends.count(k) for k in range(N)])
""",
    "cuGraph": """
degrees = graph.degree().set_index("vertex")["degree"].to_pandas().to_dict()
tell(len(edges) / 2, float(edges["weight"].sum()) / 2, [degrees.get(k, 0) // 2 for k in range(N)])
""",
    "PyTorch Geometric": """
assert data.is_undirected() and data.num_nodes == N
tell(data.num_edges / 2, float(edges["weight"].sum()) / 2,
     torch.bincount(index[0], minlength=N).tolist())
""",
    "networkit": """
tell(graph.numberOfEdges(), graph.totalEdgeWeight(), [graph.degree(k) for k in range(N)])
""",
    "igraph": """
tell(graph.ecount(), sum(graph.es["weight"]), graph.degree())
""",
    "Cosmograph": """
assert len(points) == N and type(graph).__name__ == "Cosmograph"
ends = [*links["src"], *links["dst"]]
tell(len(links), links["weight"].sum(), [ends.count(k) for k in range(N)])
""",
}


def _snippets() -> dict[str, str]:
    """Return the lines for each program, by the heading above them."""
    sections = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    blocks = {
        heading: re.findall(r"^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for heading, text in zip(sections[1::2], sections[2::2], strict=True)
    }
    return {heading: "\n".join(found) for heading, found in blocks.items() if found}


def test_the_guide_has_lines_for_each_program():
    assert set(_snippets()) == set(NEEDS) == set(TELL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Give a folder with a graph in several files, whose last cells are isolated."""
    matrix = sp.lil_matrix((N, N), dtype=np.float32)
    matrix[: N - 5, : N - 5] = sp.random(N - 5, N - 5, density=0.02, random_state=0)
    adata = ad.AnnData(
        obs=pd.DataFrame(index=[f"c{k}" for k in range(N)]),
        obsp={"connectivities": matrix.tocsr()},
        obsm={"X_umap": np.random.default_rng(0).random((N, 2))},
    )
    folder = tmp_path_factory.mktemp("libraries")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "FILE_ROWS", 2000)
        export_connectivities(
            adata, folder / "graph", format="parquet", weights=True, rule="max",
            directions="both", cells_table=True,
        )  # fmt: skip
    assert len(list((folder / "graph").glob("edges-*.parquet"))) > 2
    return folder


def _has(python: str, modules: list[str]) -> bool:
    script = f"import importlib.util as u; print(all(map(u.find_spec, {modules!r})))"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    return done.stdout.strip() == "True"


@pytest.mark.parametrize("heading", NEEDS)
def test_programs_agree_on_edges_weights_and_degrees(folder: Path, heading: str) -> None:
    pythons = [sys.executable, os.environ.get("CELLGRAPH_READERS") or sys.executable]
    python = next((p for p in pythons if _has(p, NEEDS[heading])), None)
    if python is None:
        pytest.skip(f"not installed: {', '.join(NEEDS[heading])}")
    script = f"import json\nN = {N}\n" + _snippets()[heading]
    script += "\ndef tell(n, w, degrees):\n    print('FOUND', json.dumps([n, w, list(degrees)]))\n"
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-W", "ignore", "-c", script + TELL[heading]], cwd=folder, env=environment,
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout.partition("FOUND")[2])
    with open_export(folder / "graph") as graph:
        expected = graph.to_scipy()
        assert found[0] == graph.n_edges
        assert found[1] == pytest.approx(float(graph.weights.sum()))
        assert found[2] == np.diff(expected.indptr).tolist()
