"""The raw rows whose task type and language are estimated: all of a small source, a sample of a large one.

Estimating both takes nearly as long as encoding the row with the fast encoder, and they serve the report only. There,
10,000 rows give each share within one percentage point; the rules themselves err more often. Where `balance` uses the
task types, that of each row is estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep.mixture.selection_order import selection_order
from data_prep.quality import languages, task_types
from data_prep.quality.task_types import UNKNOWN
from data_prep.recipe import Recipe, Source

if TYPE_CHECKING:
    from data_prep.conversation import Conversation
    from data_prep.sources.slices import Slice

SAMPLED_ROWS = 10_000  # of a source, about; twice as many at most
# The default, whatever the recipe's own: otherwise each change of it would make all parts again.
_SEED = Recipe.model_fields["seed"].default


@dataclass(frozen=True, slots=True)
class Described:
    """The raw rows of one source that are described: those with the smallest selection keys.

    The plan uses the same ones first: where it uses little of a source, all that it uses is described.
    """

    task_type_every: int  # one raw row in this many
    language_every: int

    @classmethod
    def of_source(cls, source: Source, slices: Sequence[Slice]) -> Described:
        """What the number of the source's rows asks for, the same to all tasks of a job array."""
        rows = sum(slice_.num_rows for slice_ in slices)
        every = max(1, rows // SAMPLED_ROWS)
        return cls(1 if source.balance == "task_type" else every, every)

    def describe(self, conversation: Conversation, content: int) -> tuple[int, int]:
        """Indices into TASK_TYPES and LANGUAGES, or UNKNOWN.

        Args:
            content: the row's content hash.
        """
        key = selection_order(content, _SEED) if self.language_every > 1 else 0
        task_type = task_types.classify(conversation) if key * self.task_type_every < 2**64 else UNKNOWN
        language = languages.detect_conversation(conversation) if key * self.language_every < 2**64 else UNKNOWN
        return task_type, language
