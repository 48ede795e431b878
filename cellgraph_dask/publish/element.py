"""An element that is put into a store that is there: made beside the store, then renamed into it.

A store may have consolidated metadata: a copy of all metadata in one file, so that an element and
that file would have to change at once. A new element is renamed in first; until the file follows,
readers of the file find the store as it was. Where an older element is replaced, the file is taken
away first, so that every reader looks at the metadata themselves: both change places in one step.
Then the file is written again. A run that was killed in between left a note, and the next one does
the rest.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

from ..errors import OutputError
from ..machine.files import absolute, fsync_folder, named_disk_errors, write_aside
from ..machine.folders import check_no_link, clear
from ..machine.interrupts import holding
from .consolidated import consolidate, is_consolidated, is_group, strip
from .whole import exchange, work_beside
from .work_folder import WorkFolder

_NOTE = "mend.json"  # which groups have to get their consolidated metadata back

log = logging.getLogger(__name__)


class ElementOutput:
    """An element of a store's `obsp`, held for writing; a context manager.

    It has what an `Output` has. `group` is the path of the AnnData in the store. With `force`, an
    element of that key is replaced. An OutputError says that there is one.
    """

    upload_bytes = 0

    def __init__(self, store: Path, group: str, key: str, *, force: bool, resume: bool) -> None:
        self.out_dir = store
        self.path = absolute(store)
        self.name = str(self.path)
        self.folder = self.path.parent
        real = Path(os.path.realpath(store))  # beside it, so on its disk
        work = work_beside(real)
        self._held = WorkFolder(work.parent, str(store), resume=True, work=work.name)
        self.work = self._held.path
        self.keep = False
        self._group = real / group if group else real
        self._key = key
        self._force, self._resume = force, resume
        self._check()

    def _check(self) -> bool:
        """Return whether an element is to be replaced; refuse what must not be."""
        with named_disk_errors(self.folder):
            target = self._group / "obsp" / self._key
            check_no_link(target)
            if not is_group(self._group):
                raise OutputError(f"{self._group} is not a group of a zarr store any more.")
            if not target.exists():
                return False
        if not self._force:
            raise OutputError(
                f"{self.out_dir} has obsp/{self._key} already. Choose another key (`to_key`), or "
                "replace it with `force=True`; the old one stays whole until the new one is "
                "complete."
            )
        return True

    def __enter__(self) -> ElementOutput:
        self._held.take()
        try:
            with named_disk_errors(self.folder):
                self._mend()
                if not self._resume:
                    clear(self.work, keep=["lock"])
        except BaseException:
            self._held.release(keep=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._held.release(keep=self.keep or (self.work / _NOTE).exists())

    def publish(self, made: Path) -> None:
        """Show the element that is in ``obsp/<key>`` of the folder `made`, whose files are durable.

        `made` has a whole group `obsp`, for a store that has none.
        """
        with holding() as hold, named_disk_errors(self.folder):
            for folder, _, _ in os.walk(made / "obsp"):
                fsync_folder(Path(folder))
            replaces = self._check()
            hold.begin()
            groups = [group for group in self._levels() if is_consolidated(group)]
            self._note(groups)
            try:
                self._place(made / "obsp", groups, replaces=replaces)
            except BaseException:
                with suppress(OSError):
                    self._mend()
                raise
            hold.shown = True
            with suppress(OSError):
                fsync_folder(self._group / "obsp")
                fsync_folder(self._group)
            try:
                self._mend()
            except OSError as error:
                log.warning(
                    "the consolidated metadata of %s could not be written (%s): web readers do not "
                    "find the new element. Put it in again, which does the rest",
                    self.name,
                    error.strerror,
                )

    def _place(self, made: Path, groups: list[Path], *, replaces: bool) -> None:
        obsp = self._group / "obsp"
        if not is_group(obsp):
            made.rename(obsp)
            return
        if replaces:
            for group in groups:
                strip(group)
            exchange(made / self._key, obsp / self._key)
        else:
            (made / self._key).rename(obsp / self._key)

    def _levels(self) -> list[Path]:
        """Return the AnnData's group and those above it in the store."""
        levels = [self._group]
        while is_group(levels[-1].parent):
            levels.append(levels[-1].parent)
        return levels

    def _note(self, groups: list[Path]) -> None:
        if groups:
            text = json.dumps([str(group) for group in groups])
            write_aside(self.work / _NOTE, text, aside=self.work / f"{_NOTE}.part")
            (self.work / f"{_NOTE}.part").replace(self.work / _NOTE)
            fsync_folder(self.work)

    def _mend(self) -> None:
        """Write consolidated metadata as the note says, and remove it."""
        try:
            noted = set(json.loads((self.work / _NOTE).read_text()))
        except (FileNotFoundError, ValueError):
            return
        for group in self._levels():
            if str(group) in noted:
                consolidate(group)
        (self.work / _NOTE).unlink()
