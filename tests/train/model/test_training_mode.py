"""A model that is in training mode is not walked through again."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from train.model.training_mode import remember


@pytest.fixture
def model(tiny_model_dir):
    made = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"))
    remember(made)
    return made


def modes(model):
    return {module.training for module in model.modules()}


def test_every_change_reaches_every_module(model):
    for change, expected in [("train", True), ("eval", False), ("eval", False), ("train", True), ("train", True)]:
        assert getattr(model, change)() is model
        assert modes(model) == {expected}
    assert model.train(False) is model and modes(model) == {False}


def test_the_walk_is_spared(model, monkeypatch):
    walked = []
    inner = type(model.model).train
    monkeypatch.setattr(type(model.model), "train", lambda self, mode=True: (walked.append(mode), inner(self, mode))[1])
    model.train()
    model.train()
    model.eval()
    model.train()
    assert walked == [True, False, True]


def test_through_a_wrapper_and_in_a_copy(model):
    wrapper = torch.nn.Sequential(model)
    wrapper.train()
    assert modes(wrapper) == {True}
    other = copy.deepcopy(model)
    other.eval()
    assert modes(other) == {False} and modes(model) == {True}
    wrapper.eval()
    assert modes(model) == {False}
