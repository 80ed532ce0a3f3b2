"""Encoders are proven each time: that is what is tested here."""

from __future__ import annotations

import pytest

from tests.support import proven_encoders


@pytest.fixture(autouse=True)
def encoders_proven_each_time(monkeypatch):
    monkeypatch.setattr(proven_encoders.fastokens_encoder, "build", proven_encoders.build)
