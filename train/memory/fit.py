"""Whether a setting fits a GPU, and the largest micro-batch that does."""

from __future__ import annotations

import dataclasses
from functools import cached_property

from train.memory import tracing
from train.memory.estimate import Estimate, estimate
from train.memory.prepared import is_linear
from train.memory.setting import Setting
from train.memory.skeleton import Skeleton
from train.memory.tracing import Traced

_MOST_ROWS = 4096
_FEW = 8192  # tokens; more are not traced one by one. TRL's head takes tiles of 4,096 tokens (TOKEN_CHUNK_SIZE)


class Fit:
    """Estimates of one model under many settings; what was traced once is not traced again.

    Args:
        limit: bytes of a GPU; None where they are not known.
    """

    def __init__(self, skeleton: Skeleton, setting: Setting, limit: int | None):
        self.skeleton, self.setting, self.limit = skeleton, setting, limit
        self._traced: dict[object, Traced] = {}

    @cached_property
    def estimate(self) -> Estimate:
        """Of the setting as it is."""
        return self.of(self.setting)

    def of(self, setting: Setting) -> Estimate:
        """Of another setting; all share the adapters and the quantisation of the first."""
        return estimate(self.skeleton, setting, self._passes(setting))

    def _passes(self, setting: Setting) -> Traced:
        """Traced, or on the line through two that are."""
        key = self._key(setting)
        if key not in self._traced and is_linear(setting) and setting.tokens > _FEW:
            one, other = (self._trace(_with_tokens(setting, tokens)) for tokens in (_FEW, 2 * _FEW))
            return tracing.between(one, other, (setting.tokens - _FEW) / _FEW)
        return self._trace(setting)

    def _trace(self, setting: Setting) -> Traced:
        key = self._key(setting)
        if key not in self._traced:
            self._traced[key] = tracing.trace(self.skeleton, setting)
        return self._traced[key]

    def _key(self, setting: Setting) -> object:
        return tracing.key(setting, carries_state=bool(self.skeleton.stateful))

    def fits(self, setting: Setting) -> bool:
        """Whether it needs at most the GPU's memory; True where that is not known."""
        return self.limit is None or self.of(setting).needed <= self.limit

    def largest_rows(self, setting: Setting) -> int:
        """The largest micro-batch that fits, in packed rows: 0 if none does, or if the memory is not known.

        What it needs is nearly a line in the rows, so the search begins where the line through one and two rows ends.
        """
        if self.limit is None or not self.fits(with_rows(setting, 1)):
            return 0
        one, two = (self.of(with_rows(setting, rows)).needed for rows in (1, 2))
        rows = max(1, min(_MOST_ROWS, 1 + (self.limit - one) // max(two - one, 1)))
        while rows > 1 and not self.fits(with_rows(setting, rows)):
            rows -= 1
        while rows < _MOST_ROWS and self.fits(with_rows(setting, rows + 1)):
            rows += 1
        return rows

    def rows_that_divide(self, setting: Setting) -> int:
        """The largest micro-batch that fits and leaves the rows of a step as they are; 1 if none fits."""
        rows = setting.rows * setting.accumulation
        most = min(self.largest_rows(setting), rows)
        return max((number for number in range(1, most + 1) if rows % number == 0), default=1)


def with_rows(setting: Setting, rows: int) -> Setting:
    """With another micro-batch, and the same accumulation."""
    return dataclasses.replace(setting, rows=rows)


def _with_tokens(setting: Setting, tokens: int) -> Setting:
    return dataclasses.replace(setting, rows=1, seq_len=tokens, row_ranks=1)
