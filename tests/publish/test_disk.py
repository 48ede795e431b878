"""Publishing on disk, killed or refused at every system call."""

from __future__ import annotations

import json
import os
import shutil
import stat
from functools import partial
from pathlib import Path

import pytest

from cellgraph_dask import verify_export
from cellgraph_dask.publish.work_folder import WORK_FOLDER
from tests.helpers.command import run, run_process
from tests.helpers.fault_server import Attempts, FaultServer, needs_watching
from tests.helpers.outputs import (
    GZIP,
    IDENTITY,
    MANIFEST,
    N_EDGES,
    PLAIN,
    DiskPlace,
    Made,
    graph_in,
    identity_of,
)

# Publishes the edge files of another export: what an export does at its end, and nothing else.
PUBLISH = """
import shutil, sys
from pathlib import Path
from cellgraph_dask.edge_pairs.format import read_manifest
from cellgraph_dask.errors import CellgraphError
from cellgraph_dask.publish.output import open_output
made, out_dir = map(Path, sys.argv[1:])
manifest = read_manifest(made)
try:
    with open_output(out_dir, force=True) as output:
        for name in manifest.files:
            shutil.copyfile(made / 'connectivity' / name, output.work / name)
        output.publish(manifest)
except CellgraphError:
    sys.exit(9)
"""
REFUSED = 9
RENAMES = ("rename", "renameat", "renameat2", "link", "linkat")
STEPS = (*RENAMES, "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "fsync", "ftruncate")
needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None and "CI" not in os.environ, reason="strace is not installed"
)


class Threatened(DiskPlace):
    """A folder to be put back before each attempt, and the files of the export that is to come."""

    def __init__(
        self, server: FaultServer, folder: Path, exports: Made, before: int | str | None,
        after: int | None,
    ):  # fmt: skip
        super().__init__(folder / "out")
        self.before = {} if before == "nothing" else dict(exports.files["old", before])
        self.old = "nothing" if before == "nothing" else "old"
        self.before[IDENTITY] = json.dumps(identity_of(self.old)).encode()
        self.after = {*exports.files["new", after], IDENTITY}
        self.made = folder / "made"
        DiskPlace(self.made).restore(exports.files["new", after])
        self.publishing = Attempts(
            server, PUBLISH, (self.made, self.out_dir), folder, partial(self.restore, self.before)
        )

    def state(self) -> str:
        """Return which graph is shown; fail if the identity tells of another one."""
        found = graph_in(self.files())
        told = json.loads((self.out_dir / IDENTITY).read_text())["stats"]["n_edges"]
        assert told in (None, N_EDGES[found])
        return found


@pytest.mark.slow
@needs_watching
@pytest.mark.parametrize(
    ("before", "after"),
    [(PLAIN, PLAIN), (PLAIN, GZIP), (GZIP, GZIP), ("nothing", PLAIN)],
)
def test_killed_at_every_step(server, exports, tmp_path, before, after):
    place = Threatened(server, tmp_path, exports, before, after)
    found = []
    for n, _ in enumerate(place.publishing.steps(STEPS), 1):
        assert place.publishing.run(STEPS, n).exit_code == -9
        assert (place.out_dir / MANIFEST).exists() or before == "nothing"
        found.append(place.state())

        options = [] if after is None else ["--compression", after]
        outcome = run("export", exports.stores["new"], place.out_dir, "--force", *options)
        assert outcome.exit_code == 0, outcome.stderr
        assert place.state() == "new"
        assert set(place.files()) == place.after
        assert verify_export(place.out_dir).ok
    # It was killed before and after the one step that counts.
    switch = found.index("new")
    assert 8 < switch < len(found) - 3
    assert set(found[:switch]) == {place.old}
    assert set(found[switch:]) == {"new"}


@pytest.mark.slow
@needs_watching
@pytest.mark.parametrize(("before", "after"), [(PLAIN, PLAIN), (GZIP, PLAIN)])
def test_a_disk_that_fails_at_any_step(server, exports, tmp_path, before, after):
    place = Threatened(server, tmp_path, exports, before, after)
    names = (*RENAMES, "fsync", "ftruncate")
    found, shown = [], []
    for n, call in enumerate(place.publishing.steps(names), 1):
        exit_code = place.publishing.run(names, n, "EIO").exit_code
        found.append(place.state())
        if not call.startswith("link"):
            # Once it is shown, and that is durable, all else is tidying up.
            shown.append(exit_code == 0)
            assert exit_code in (0, REFUSED)
            assert exit_code == REFUSED or found[-1] == "new"
        if found[-1] == "old":
            assert place.files() == place.before
        else:
            assert len(place.files()) == len(place.after)
            assert verify_export(place.out_dir).ok
    switch = found.index("new")
    assert switch > 5
    assert set(found[:switch]) == {"old"}
    assert set(found[switch:]) == {"new"}
    assert shown == sorted(shown)


@needs_strace
@pytest.mark.usefixtures("leaves_scratch")
def test_a_killed_export_leaves_the_old_one_and_the_next_clears_up(tmp_path, exports):
    place, source = DiskPlace(tmp_path / "out"), exports.stores["new"]
    place.restore(exports.files["old", PLAIN])
    before = place.files()
    # The first name that the main thread puts into the edge folder.
    start = ["strace", "-f", "-qqq", "-o", "/dev/null", "-P", str(place.out_dir / "connectivity"),
             "-e", "inject=fsync:signal=KILL:when=1"]  # fmt: skip
    outcome = run_process("export", source, place.out_dir, "--force", before=start)
    assert outcome.exit_code == -9
    assert (place.out_dir / WORK_FOLDER).is_dir()
    assert place.files() | before == place.files()
    assert graph_in(place.files()) == "old"

    assert run("export", source, place.out_dir, "--force").exit_code == 0
    assert place.files() == exports.files["new", PLAIN]


def test_files_keep_their_modes(tmp_path, exports):
    place = DiskPlace(tmp_path / "out")
    place.restore(exports.files["old", PLAIN] | {IDENTITY: json.dumps(identity_of("old")).encode()})
    for name in (IDENTITY, MANIFEST):
        (place.out_dir / name).chmod(0o640)
    assert run("export", exports.stores["new"], place.out_dir, "--force").exit_code == 0
    assert graph_in(place.files()) == "new"
    for name in (IDENTITY, MANIFEST):
        assert stat.S_IMODE((place.out_dir / name).stat().st_mode) == 0o640
