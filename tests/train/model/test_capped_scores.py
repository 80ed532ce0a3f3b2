"""Attention of models with soft-capped scores, such as Gemma 2."""

from __future__ import annotations

import pytest

from tests.support.attention_settings import setting
from train.model import attention
from train.model.attention import choose


def test_capped_scores_also_where_the_class_calls_itself_fit_for_sdpa(monkeypatch):
    """As Gemma 2 of transformers 5.17 does: sdpa would leave the cap out."""
    monkeypatch.setattr(attention, "has_distribution", lambda name: False)
    capped = {"config": {"attn_logit_softcapping": 50.0}}
    assert choose("auto", setting(**capped))[0] == "flex_attention"
    assert choose("auto", setting(**capped, use_cpu=True))[0] == "eager"
    for name in ("varlen", "sdpa"):
        with pytest.raises(ValueError, match="the model caps its scores at 50"):
            choose(name, setting(**capped))
