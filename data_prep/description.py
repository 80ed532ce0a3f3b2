"""Which rows' task type and language are looked up: all of a small source, a sample of a large one.

Telling both takes nearly as long as encoding the row by the fast encoder, and they serve the report only. There, 10,000
rows give each share within one percentage point; the rules themselves err more often. Where `balance` uses the task
types, each row's is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep import languages, task_types
from data_prep.recipe import Recipe, Source
from data_prep.selection import selection_order

if TYPE_CHECKING:
    from data_prep.conversation import Conversation
    from data_prep.readers import Slice

SAMPLED_ROWS = 10_000  # of a source, about; twice as many at most
UNKNOWN = 255  # in the place of an index into TASK_TYPES or LANGUAGES
_SEED = Recipe.model_fields["seed"].default  # a recipe's own would make the parts anew with each change of it


@dataclass(frozen=True, slots=True)
class Described:
    """The rows of one source that are described: one of so many.

    Those with the smallest selection keys, which the plan uses first: of a source of which little is used, all that is.
    """

    task_type_every: int
    language_every: int

    @classmethod
    def of_source(cls, source: Source, slices: Sequence[Slice]) -> Described:
        """What the number of the source's rows asks for, the same to all tasks of a job array."""
        rows = sum(piece.num_rows for piece in slices)
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
