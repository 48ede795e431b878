"""Stages that keep what an interrupted run has finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from ..export.journal import Journal
from .threads import Executor


class Numbered(Protocol):
    """A key of a stage: a block, a piece, a stretch."""

    @property
    def number(self) -> int:
        """Its number in the stage."""


Key = TypeVar("Key", bound=Numbered)
Summary = TypeVar("Summary", bound=tuple[Any, ...])


class Stages:
    """Runs stages and keeps a journal of them.

    Parameters
    ----------
    executor
        Runs their tasks.
    journal
        What is finished already, and what will be.

    Attributes
    ----------
    n_kept : int
        Tasks of an interrupted run that did not have to be done again.
    """

    def __init__(self, executor: Executor, journal: Journal) -> None:
        self.executor = executor
        self.n_kept = 0
        self._journal = journal

    def run(
        self,
        stage: str,
        function: Callable[[Key], Summary],
        keys: Sequence[Key],
        *,
        summary: type[Summary],
        holds: Callable[[tuple[Key, Summary]], bool],
        sizes: Sequence[int],
        unit: str,
        variant: str = "",
        keep: Callable[[dict[int, Summary]], None] = lambda _kept: None,
        stop: Callable[[], None] = lambda: None,
    ) -> list[Summary]:
        """Run a function over all keys that are not done, and return all summaries in order.

        Parameters
        ----------
        stage, function, keys, sizes, unit, stop
            As for an executor.
        summary
            What the function returns.
        holds
            Tells whether what a finished task has left is still there; run as tasks.
        variant
            What else must be the same for summaries to count, such as where edges go.
        keep
            Told of the summaries that are kept, before the others are worked on.
        """
        label = f"{stage} {variant}"
        found = self._journal.found(label, summary)
        candidates = [(key, found[key.number]) for key in keys if key.number in found]
        kept: dict[int, Summary] = {}
        if candidates:
            sound = self.executor.run(
                f"check {stage}", holds, candidates, sizes=[1] * len(candidates), unit="tasks"
            )
            kept = {
                key.number: value for (key, value), ok in zip(candidates, sound, strict=True) if ok
            }
            self.n_kept += len(kept)
        keep(kept)
        todo = [k for k, key in enumerate(keys) if key.number not in kept]
        done = self.executor.run(
            stage,
            function,
            [keys[k] for k in todo],
            sizes=[sizes[k] for k in todo],
            unit=unit,
            stop=stop,
            done=lambda key, value: self._journal.add(label, key.number, value),
        )
        new = {keys[k].number: value for k, value in zip(todo, done, strict=True)}
        both = kept | new
        return [both[key.number] for key in keys]
