"""What a plan says of its sources: which key of the recipe reads what is not read."""

from __future__ import annotations

import pytest

from data_prep.stages.plan_notes import unread_note


@pytest.mark.parametrize(
    ("unread", "keys"),
    [
        (["id"], "`columns`"),
        (["messages[].ts"], "`message_keys`"),
        (["id", "messages[].ts"], "`columns` or `message_keys`"),
    ],
)
def test_what_is_not_read_is_mapped_by_the_key_that_reads_it(unread, keys):
    assert unread_note("s", unread).endswith(f"not read: {unread}; map it with {keys}, or name it in `ignore`")
