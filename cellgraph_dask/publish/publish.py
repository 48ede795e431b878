"""From files that were made aside to the export that readers see, on disk and in remote storage.

One small file, the manifest, is replaced as a whole, and that turns the old export into the new
one; so it must never name files that belong to the other. Where both have the same file names, the
new files come in under tagged names first::

    edges.src.1f3c….bin, edges.dst.1f3c….bin     new files beside the old ones
    connectivity_manifest.json                   names the tagged files: the new export is there
    edges.src.bin, edges.dst.bin                 replaced by the same files
    connectivity_manifest.json                   names them; the tagged names go

The dataset's identity, which holds the number of edges too, says nothing of it while the manifest
is replaced, and neither does the provenance. Killed at any point, a reader finds the old export or
the new one.

The steps and their order are here, once. What a step is on disk (renaming and fsync) is in
`DiskTarget`, and what it is in storage (uploading and copying) in `upload.StorageTarget`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

from ..edge_pairs.format import (
    CELLS_FILE,
    EDGE_FILE,
    FOLDER,
    IDENTITY,
    MANIFEST,
    Manifest,
    cells_name,
    check_readable,
    identity_tells,
    identity_text,
    read_identity,
    read_manifest,
)
from ..edge_pairs.generation import check_generation
from ..edge_pairs.provenance import MOST_BYTES, NOTHING, PROVENANCE
from ..errors import InvalidExportError, OutputError, redact
from ..machine.files import fsync_folder, named_disk_errors, write_aside
from ..machine.folders import check_no_link
from ..machine.interrupts import Hold, holding
from ..machine.remote import AnyPath
from ..runtime.progress import Progress
from .work_folder import WorkFolder

log = logging.getLogger(__name__)


class Target(Protocol):
    """A folder that an export is published to; edge files go by their names in `FOLDER`."""

    upload_bytes: int  # memory that `bring` takes at most

    @property
    def path(self) -> AnyPath:
        """The folder."""

    def named_errors(self) -> AbstractContextManager[None]:
        """Turn what the disk or the storage refuses into our own errors, inside a ``with``."""

    def try_to_write(self) -> None:
        """Find out before the work whether the export will be taken, as far as that can be told."""

    def size(self, name: str) -> int | None:
        """Size of a file beside the edge files, or of one of these; None if there is none."""

    def list(self) -> list[str]:
        """Names of all files beside the edge files, and theirs."""

    def bring(self, made: Sequence[Path], names: Sequence[str], progress: Progress) -> None:
        """Let finished files appear under names, each as a whole and durably."""

    def copy(self, names: Sequence[str], others: Sequence[str]) -> None:
        """Let edge files appear under other names too, as `bring` does, replacing what is there."""

    def put_texts(self, texts: Sequence[tuple[str, str]]) -> None:
        """Replace small files of the export's folder, as (name, text), one after the other.

        Each is replaced as a whole. Where that fails, the files from the failing one on are as
        they were, if the disk or the storage lets them be so.
        """

    def remove(self, name: str) -> None:
        """Remove an edge file."""


def publish(target: Target, manifest: Manifest, made: Path, progress: Progress) -> None:
    """Show the edge files in the folder `made` to readers, under the names of a manifest.

    The manifest has no tag. There may be a `PROVENANCE` beside them, and the names of cells, which
    are shown and replaced as edge files are. If that fails, the old export is whole. Once the new
    one is shown, signals wait, and what fails then is told as a warning: only tidying up is left.
    """
    check_generation(
        target.path, weighted=manifest.weighted
    )  # as somebody may have prepared it meanwhile
    with holding() as hold:
        _publish(target, manifest, made, progress, hold)


def _publish(
    target: Target, manifest: Manifest, made: Path, progress: Progress, hold: Hold
) -> None:
    has_cells, provenance = (made / cells_name()).exists(), made / PROVENANCE
    names = _names(manifest, has_cells)
    sizes = [(made / name).stat().st_size for name in names]
    _remove_unnamed(target)  # of an export that was killed
    try:
        # No manifest names the names of cells: their name alone tells whose they are.
        taken = has_cells or any(target.size(n) is not None for n in (*names, cells_name()))
        hop = taken and _has_manifest(target)
        shown = replace(manifest, tag=os.urandom(4).hex()) if hop else manifest
        target.bring([made / name for name in names], _names(shown, has_cells), progress)
        hold.begin()
        try:
            _show(target, shown, provenance.read_text() if provenance.exists() else NOTHING)
        except KeyboardInterrupt:
            if _shown(target) != shown:
                raise
        hold.shown = True
        if hop:
            with _only_tidying(target):
                target.copy(_names(shown, has_cells), names)
                if not has_cells and target.size(cells_name()) is not None:
                    target.remove(cells_name())  # of the export before
                target.put_texts([(MANIFEST, manifest.to_json())])
    finally:
        with _only_tidying(target):
            _remove_unnamed(target)
    found = _shown(target)
    if found not in (shown, manifest) or _sizes(target, found, has_cells) != sizes:
        hold.shown = False
        raise OutputError(
            f"{target.path} does not hold what was written to it: another export into it may have "
            "run at the same time. Export again."
        )


def _names(manifest: Manifest, has_cells: bool) -> list[str]:
    """Return the names of edge files, and of the names of cells if there are any."""
    return [*manifest.files, *([cells_name(manifest.tag)] if has_cells else [])]


def _sizes(target: Target, shown: Manifest | None, has_cells: bool) -> list[int | None]:
    return [target.size(name) for name in _names(shown, has_cells)] if shown is not None else []


@contextmanager
def _only_tidying(target: Target) -> Iterator[None]:
    """Tell as a warning what fails when one export or the other is whole."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:  # a lost connection, say
        log.warning(
            "tidying up in %s was cut short (%s); what readers find is whole, and the next export "
            "into it does the rest",
            target.path,
            redact(str(error)) or type(error).__name__,
        )


def _show(target: Target, manifest: Manifest, provenance: str) -> None:
    """Replace the manifest, the dataset's identity and the provenance as if in one step.

    Several files cannot be replaced at once. So the identity first says nothing of the number of
    edges, if what it says is not the new number, nor the provenance of anything; then the manifest
    comes; then what they say of it. Where a step fails, they are made to agree with the manifest
    that is there; if that is the new one, all is well.
    """
    changes = [*_identity_changes(target, manifest), *_provenance_changes(target, provenance)]
    steps = [(change.name, change.silent) for change in changes if change.silent is not None]
    steps += [(MANIFEST, manifest.to_json()), *((c.name, c.after) for c in changes)]
    try:
        target.put_texts(steps)
    except BaseException:
        with suppress(Exception):  # if the manifest cannot be read, the others stay silent
            new = _shown(target) == manifest
            told = [(c.name, c.after if new else c.before) for c in changes]
            target.put_texts([(name, text) for name, text in told if text is not None])
            if new:
                return
        raise


class _Change(NamedTuple):
    """Of a text that tells of the export: before, while the manifest is replaced, and after."""

    name: str
    before: str | None
    silent: str | None  # if it must say nothing of either export meanwhile
    after: str


def _identity_changes(target: Target, manifest: Manifest) -> Iterator[_Change]:
    identity = read_identity(target.path, manifest.n_cells)
    if identity is None or identity_tells(identity, manifest.n_edges):
        return
    with (target.path / IDENTITY).open("rb") as file:
        before = file.read(-1).decode()
    silent = None
    if identity["stats"].get("n_edges") not in (None, manifest.n_edges):
        stats = {"stats": identity["stats"] | {"n_edges": None}}
        silent = json.dumps(identity | stats, indent=2)
    yield _Change(IDENTITY, before, silent, identity_text(identity, manifest.n_edges))


def _provenance_changes(target: Target, after: str) -> Iterator[_Change]:
    name = f"{FOLDER}/{PROVENANCE}"
    before = None
    if target.size(PROVENANCE) is not None:
        before = NOTHING
        with suppress(OSError, ValueError, InvalidExportError):
            check_readable(target.path / name, target.path)
            with (target.path / name).open("rb") as file:
                before = file.read(MOST_BYTES).decode()
    if before != after and (before is not None or after != NOTHING):
        yield _Change(name, before, NOTHING if before is not None else None, after)


def _remove_unnamed(target: Target) -> None:
    """Remove edge files that the manifest does not name: tagged, twins, or of a failure."""
    try:
        shown = _shown(target)
    except InvalidExportError:  # who knows what it names?
        return
    named = set(_names(shown, True)) if shown else set()
    # A manifest that is not of this format may name what it likes, but no name with a tag.
    foreign = shown is None and _has_manifest(target)
    for name in target.list():
        match = EDGE_FILE.fullmatch(name) or CELLS_FILE.fullmatch(name)
        if match and name not in named and (match["tag"] or not foreign):
            target.remove(name)


def _has_manifest(target: Target) -> bool:
    return (target.path / MANIFEST).exists()


def _shown(target: Target) -> Manifest | None:
    """Return the manifest that readers find, or None if there is none, or none of this format."""
    try:
        return read_manifest(target.path)
    except InvalidExportError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return None


class DiskTarget:
    """A folder of this machine, which a `WorkFolder` holds; see `Target` for the methods."""

    upload_bytes = 0

    def __init__(self, held: WorkFolder) -> None:
        self.path = held.folder
        self._held = held
        self._folder = held.folder / FOLDER

    def named_errors(self) -> AbstractContextManager[None]:
        """Raise a full disk as `DiskSpaceError`, other errors as `OutputError`."""
        return named_disk_errors(self.path)

    def try_to_write(self) -> None:
        """Do nothing: the work folder has been made on this disk."""

    def size(self, name: str) -> int | None:
        """Size of a file beside the edge files, or of one of these; None if there is none."""
        path = self._folder / name
        return path.stat().st_size if path.exists() else None

    def list(self) -> list[str]:
        """Names of all files beside the edge files, and theirs."""
        check_no_link(self._folder)
        return [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []

    def bring(self, made: Sequence[Path], names: Sequence[str], progress: Progress) -> None:
        """Rename files, which are durable already."""
        check_no_link(self._folder)
        self._folder.mkdir(exist_ok=True)
        for new in (self._folder, *self._held.created):  # before a manifest that needs them
            fsync_folder(new.parent)
        for path, name in zip(made, names, strict=True):
            path.replace(self._folder / name)
        fsync_folder(self._folder)

    def copy(self, names: Sequence[str], others: Sequence[str]) -> None:
        """Give files a second name each; copy them where there are no hard links."""
        for name, other in zip(names, others, strict=True):
            again = self._held.path / other
            try:
                os.link(self._folder / name, again)
            except OSError:  # a file system without hard links
                shutil.copyfile(self._folder / name, again)
                with again.open("rb") as file:
                    os.fsync(file.fileno())
            again.replace(self._folder / other)
        fsync_folder(self._folder)

    def put_texts(self, texts: Sequence[tuple[str, str]]) -> None:
        """Rename texts; all of them are written before the first one is shown."""
        asides = [self._held.path / f"{Path(n).name}.{k}" for k, (n, _) in enumerate(texts)]
        for aside, (name, text) in zip(asides, texts, strict=True):
            write_aside(self.path / name, text, aside=aside)
        for aside, (name, _) in zip(asides, texts, strict=True):
            aside.replace(self.path / name)
            fsync_folder((self.path / name).parent)

    def remove(self, name: str) -> None:
        """Remove an edge file."""
        (self._folder / name).unlink()
