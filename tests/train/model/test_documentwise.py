"""Layers that carry a state, on packed rows: as each document by itself, in logits and in gradients."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from tests.conftest import HYBRIDS
from tests.support.packed_documents import LENGTHS, assert_equal_gradients, documents, gradients, load, packed
from train.loop.trainer import PackedSFTTrainer
from train.model import documentwise
from train.model.documentwise import Bounds, groups

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", HYBRIDS)
def test_packed_equals_separate(architecture, checkpointing, tiny_model_dir):
    model = load(tiny_model_dir(architecture)).train()
    parts = documents()
    expected = torch.cat([model(input_ids=part[None], use_cache=False).logits[0] for part in parts])
    wanted = gradients(model, expected, torch.cat(parts))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert sum(documentwise.install(model).values()) >= 1
    found = packed(model, parts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert_equal_gradients(gradients(model, found, torch.cat(parts)), wanted)


@pytest.mark.parametrize("architecture", ["lfm2", "mamba2"])
def test_generation_and_whole_rows_are_as_before(architecture, tiny_model_dir):
    ids = torch.randint(4, 260, (2, 20), generator=torch.Generator().manual_seed(0))
    found = []
    for install in (False, True):
        model = load(tiny_model_dir(architecture)).eval()
        if install:
            documentwise.install(model)
            packed(model, documents())  # its bounds must not be those of what follows
        with torch.no_grad():
            answer = model.generate(ids, max_new_tokens=5, do_sample=False)
            found.append((answer, model(input_ids=ids, use_cache=False).logits))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_attention_models_have_nothing_to_install(tiny_model_dir):
    for architecture in ("llama", "gemma3", "qwen3_moe"):
        assert not documentwise.install(load(tiny_model_dir(architecture)))


def test_a_second_installation_changes_nothing(tiny_model_dir):
    model = load(tiny_model_dir("lfm2"))
    first = documentwise.install(model)
    forwards = [module.forward for module in documentwise.mixers(model).values()]
    assert documentwise.install(model) == first
    assert [module.forward for module in documentwise.mixers(model).values()] == forwards


@pytest.mark.parametrize("seed", range(20))
def test_groups_hold_each_document_once_and_waste_little(seed):
    chance = random.Random(seed)
    lengths = [int(chance.lognormvariate(4, 1.5)) + 1 for _ in range(chance.randint(1, 200))]
    found = groups(lengths, 0.25)
    assert sorted(number for group in found for number in group) == list(range(len(lengths)))
    for group in found:
        padded = max(lengths[number] for number in group) * len(group)
        assert 1 - sum(lengths[number] for number in group) / padded <= 0.25


def test_the_index_pads_with_the_last_token():
    bounds = Bounds()
    bounds.set([2, 3])
    (group,) = bounds.indices(torch.device("cpu"))
    assert group.rows.tolist() == [[2, 3, 4], [0, 1, 1]]
    assert group.kept.tolist() == [0, 1, 2, 3, 4]
    assert group.places.tolist() == [2, 3, 4, 0, 1]
    assert bounds.indices(torch.device("cpu"))[0] is group  # once for all layers


@pytest.mark.parametrize("seed", range(20))
def test_fixed_calls_are_as_many_for_every_row(seed):
    """Under ZeRO-3 processes that called a layer more or less often than others would wait for ever."""
    chance = random.Random(seed)
    bounds = Bounds(calls=8)
    bounds.set([int(chance.lognormvariate(4, 2)) + 1 for _ in range(chance.randint(1, 300))])
    found = bounds.indices(torch.device("cpu"))
    assert len(found) == 8
    assert sorted(torch.cat([group.places for group in found]).tolist()) == list(range(sum(bounds.lengths)))
    assert sum(group.rows.numel() for group in found) <= 2 * sum(bounds.lengths) + 8 * 64


@pytest.mark.parametrize("architecture", ["lfm2", "qwen3_5_text"])
def test_fixed_calls_change_no_logit_and_no_gradient(architecture, tiny_model_dir):
    """Calls whose results are not used among them."""
    free, fixed = load(tiny_model_dir(architecture)), load(tiny_model_dir(architecture))
    called = count_calls(fixed)
    for model in (free, fixed):
        documentwise.install(model)
    documentwise.fix_calls(fixed)
    parts = documents()
    logits = [packed(model, parts) for model in (free, fixed)]
    assert set(called.values()) == {documentwise.CALLS}
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-6)
    expected, got = (
        gradients(model, found, torch.cat(parts)) for model, found in zip((free, fixed), logits, strict=True)
    )
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def count_calls(model) -> Counter[str]:
    """How often the projections within stateful layers run."""
    calls: Counter[str] = Counter()
    for outer, layer in documentwise.mixers(model).items():
        for name, child in layer.named_modules():
            if isinstance(child, torch.nn.Linear):
                child.register_forward_hook(lambda *_, called=f"{outer}.{name}": calls.update([called]))
    return calls


class OnDevice(torch.Tensor):
    """A tensor whose numbers the host does not ask for: that would wait for all work of the device."""

    def tolist(self):
        raise AssertionError("the host waits for the device")

    item = tolist


@pytest.mark.parametrize("known", [True, False])
def test_lengths_that_the_host_knows_are_not_read_from_the_device(known, tiny_model_dir):
    model = load(tiny_model_dir("lfm2"))
    documentwise.install(model)
    parts = documents()
    expected = packed(model, parts)
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).int().as_subclass(OnDevice)
    documentwise.expect(model, LENGTHS if known else None)
    if not known:
        with pytest.raises(AssertionError, match="waits"):
            packed(model, parts, cu_seq_lens_q=ends)
        return
    assert torch.equal(packed(model, parts, cu_seq_lens_q=ends), expected)
    assert torch.equal(packed(model, parts), expected)  # they are those of one forward pass


class Stop(Exception):
    """Enough was seen."""


def test_training_and_evaluation_tell_the_lengths(tiny_model_dir):
    model = load(tiny_model_dir("lfm2"))
    documentwise.install(model)
    expected = documentwise.bounds_of(model)

    def model_is_called(*args):
        assert expected.expected == LENGTHS
        raise Stop

    trainer = SimpleNamespace(model=model, meter=MagicMock(), _own_loss=True, _plain_loss=model_is_called)
    with pytest.raises(Stop):
        PackedSFTTrainer.compute_loss(trainer, model, {"document_lengths": LENGTHS})
    expected.expected = None
    trainer._prepare_inputs = model_is_called
    with pytest.raises(Stop):
        next(PackedSFTTrainer._evaluated(trainer, [{"document_lengths": LENGTHS}]))


def test_lengths_of_another_row_are_not_believed(tiny_model_dir):
    model = load(tiny_model_dir("lfm2"))
    documentwise.install(model)
    parts = documents()
    expected = packed(model, parts)
    documentwise.expect(model, [5, 6])
    assert torch.equal(packed(model, parts), expected)


class Convolved(torch.nn.Module):
    """A projection of attention that looks one token back, and returns several values for each token."""

    def __init__(self):
        super().__init__()
        self.num_key_value_groups = 2
        self.conv = torch.nn.Conv1d(4, 4, 2)

    def forward(self, hidden_states, scale=None):
        before = torch.nn.functional.pad(hidden_states.transpose(1, 2), (1, 0))
        keys = self.conv(before).transpose(1, 2)
        return hidden_states, keys[..., None], "rest"


class Pooling(torch.nn.Module):
    """Attention to means of two tokens each, in windows that begin with the row, as DeepSeek-V4's compressor."""

    def __init__(self):
        super().__init__()
        self.num_key_value_groups, self.compressor = 1, torch.nn.Identity()

    def forward(self, hidden_states, position_ids, attention_mask=None):
        usable = hidden_states.shape[1] // 2 * 2
        pooled = hidden_states[:, :usable].unflatten(1, (-1, 2)).mean(2)
        seen = torch.arange(pooled.shape[1]) < (position_ids[..., None] + 1) // 2
        mask = torch.cat([attention_mask[:, 0], torch.zeros(seen.shape).masked_fill(~seen, -1e9)], -1)
        return (torch.cat([hidden_states @ hidden_states.mT, hidden_states @ pooled.mT], -1) + mask).softmax(-1) @ (
            torch.cat([hidden_states, pooled], 1)
        )


class Holder(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, states, cu_seq_lens_q=None, **kwargs):
        return self.layer(states, **kwargs)


def test_all_values_for_each_token_are_put_back():
    model = Holder(Convolved())
    states = torch.randn(1, sum(LENGTHS), 4)
    expected = [model(part) for part in states.split(LENGTHS, dim=1)]
    assert documentwise.install(model) == {"Convolved": 1}
    found = model(states, cu_seq_lens_q=torch.tensor([0, *LENGTHS]).cumsum(0))
    for place in (0, 1):
        torch.testing.assert_close(found[place], torch.cat([one[place] for one in expected], dim=1))
    assert found[2] == "rest"


def test_attention_that_pools_gets_the_masks_of_its_documents():
    model = Holder(Pooling())
    states = torch.randn(1, sum(LENGTHS), 4)
    numbers = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    seen = (numbers[:, None] == numbers) & torch.ones(len(numbers), len(numbers)).tril().bool()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = [torch.arange(length)[None] for length in LENGTHS]
    alone = [torch.full((n, n), torch.finfo(torch.float32).min).triu(1)[None, None] for n in LENGTHS]
    parts = zip(states.split(LENGTHS, dim=1), positions, alone, strict=True)
    expected = torch.cat([model(part, position_ids=at, attention_mask=one) for part, at, one in parts], dim=1)
    assert documentwise.install(model) == {"Pooling": 1}
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    found = model(states, cu_seq_lens_q=ends, position_ids=torch.cat(positions, 1), attention_mask=mask[None, None])
    torch.testing.assert_close(found, expected)


def test_padding_at_the_end_is_one_document():
    """A row may end in hundreds of one-token documents, each of which a kernel would pad to a chunk."""
    bounds = documentwise.Bounds()
    bounds.set([5, 1, 3, *[1] * 40])
    assert bounds.lengths == [5, 1, 3, 40]
    assert sum(group.places.numel() for group in bounds.indices(torch.device("cpu"))) == 49
    bounds.set([5, 1])
    assert bounds.lengths == [5, 1]
