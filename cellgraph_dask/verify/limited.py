"""The memory that a verification may take, and the refusal of a limit that is too small."""

from __future__ import annotations

from functools import cached_property

from ..errors import MemoryLimitError
from ..machine.memory import SLACK_BYTES, resident_bytes, round_reserved, too_small


class Limited:
    """What has a memory limit in bytes, of which some are taken by the process itself."""

    limit: int

    @cached_property
    def _reserved_first(self) -> int:
        return round_reserved(resident_bytes())

    def _reserved(self) -> int:
        """Return what is taken: as at first, as long as half of the slack has room for the rest.

        So the limit that a refusal named is not refused after all for a few pages more.
        """
        now = round_reserved(resident_bytes() - SLACK_BYTES // 2)
        return max(self._reserved_first, now)

    def available(self) -> int:
        """Return the bytes that the step at hand may take."""
        return self.limit - self._reserved() - SLACK_BYTES

    def too_small(self, needed: int) -> MemoryLimitError:
        """Return the refusal of a limit, as so many bytes are needed."""
        reserved = self._reserved()
        needed += reserved + SLACK_BYTES
        return too_small("verification", self.limit, reserved, needed)
