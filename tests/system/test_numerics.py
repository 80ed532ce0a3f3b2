"""Loss, gradient norm, weights and evaluation equal an independent reference: one process, unpacked, fp32, own loss."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from data_prep.shards import IGNORE_INDEX, read_manifest, read_rows, shard_files
from tests.support.training import document_loss, documents, history, make_shards, run_config
from train.loop.sample_answers import read_samples

STEPS = 5
LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 1.0
NEW_TOKENS = 5
ANSWERS = {"short": [1] * 12, "long": [6, 6]}  # rows of very different numbers of trained tokens


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    return make_shards(tmp_path_factory.mktemp("numerics"), tiny_tokenizer.name_or_path, ANSWERS, eval_fraction=0.2)


@pytest.fixture(scope="module")
def reference(shards, tiny_model_dir):
    """Per step (loss, gradient norm, evaluation by source), the base model's evaluation and answers, and the final
    weights.

    One epoch is one step, so the order of the rows does not matter."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"), dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    train_documents, eval_documents = documents(shards, "train"), documents(shards, "eval")
    steps = []
    base = evaluate(model, eval_documents), answers(model, eval_documents)
    for _ in range(STEPS):
        losses = [document_loss(model, d) for d in train_documents]
        loss = sum(x for x, _ in losses) / sum(n for _, n in losses)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        steps.append((loss.item(), norm.item(), evaluate(model, eval_documents)))
    return steps, base, model.state_dict()


def answers(model, eval_documents) -> list[list[int]]:
    """Greedy answers to the first two held-out documents of each source, by the whole sequence each time."""
    found = []
    for source in range(len(ANSWERS)):
        for ids, labels, _ in [d for d in eval_documents if d[2] == source][:2]:
            prompt = ids[: next(i for i, label in enumerate(labels) if label != IGNORE_INDEX)]
            answer: list[int] = []
            while len(answer) < NEW_TOKENS and 3 not in answer:  # the end of a turn
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0, -1]
                answer.append(int(logits.argmax()))
            found.append(answer)
    return found


def evaluate(model, eval_documents) -> dict[str, float]:
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for document in eval_documents:
            loss, tokens = document_loss(model, document)
            for key in ("eval_loss", f"eval_{list(ANSWERS)[document[2]]}_loss"):
                total = sums.setdefault(key, [0.0, 0])
                total[0] += loss.item()
                total[1] += tokens
    return {key: loss / tokens for key, (loss, tokens) in sums.items()}


@pytest.mark.parametrize(("stage", "eval_batch"), [(1, 1), (2, 2), (3, 3)])
def test_two_processes_equal_the_reference(
    stage, eval_batch, shards, reference, worlds, tiny_model_dir, tiny_tokenizer, tmp_path
):
    steps, (base, base_answers), weights = reference
    rows = len(documents_by_row(shards))
    assert rows == 3  # plus one filler row: 2 processes x 1 row x 2 accumulation steps
    config = run_config(
        tmp_path / "run.yaml",
        data=str(shards),
        model_name_or_path=str(tiny_model_dir("llama")),
        output_dir=str(tmp_path / "run"),
        num_train_epochs=STEPS,
        gradient_accumulation_steps=2,
        learning_rate=LEARNING_RATE,
        max_grad_norm=MAX_GRAD_NORM,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=eval_batch,
        sample_max_new_tokens=NEW_TOKENS,
    )
    output = worlds.train(f"cpu_zero{stage}", config, tmp_path / "log")
    assert "2 process(es), DEEPSPEED" in output
    logged = history(tmp_path / "run")
    trained, evaluated = [h for h in logged if "loss" in h], [h for h in logged if "eval_loss" in h]
    assert len(trained) == len(evaluated) - 1 == STEPS
    assert {k: evaluated[0][k] for k in base} == pytest.approx(base, rel=2e-6)
    assert evaluated.pop(0)["eval_loss_change"] == 0
    split = read_manifest(shards)["splits"]["train"]
    assert [h["num_tokens"] for h in trained] == [split["tokens"] * (i + 1) for i in range(STEPS)]
    for (loss, norm, evaluation), got, got_evaluation in zip(steps, trained, evaluated, strict=True):
        assert got["loss"] == pytest.approx(loss, rel=2e-6)
        assert got["grad_norm"] == pytest.approx(norm, rel=2e-5)
        assert {k: got_evaluation[k] for k in evaluation} == pytest.approx(evaluation, rel=2e-6)
        changes = {k: evaluation[k] - base[k] for k in evaluation}
        assert {k: got_evaluation[f"{k}_change"] for k in changes} == pytest.approx(changes, rel=1e-3, abs=1e-5)
    assert_samples(tmp_path / "run", tiny_tokenizer, base_answers)
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "run", dtype=torch.float32).state_dict()
    for name, tensor in weights.items():
        torch.testing.assert_close(final[name], tensor, rtol=0, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


def assert_samples(run_dir, tokenizer, base_answers):
    """Answers of the base model, and as many at each evaluation."""
    samples = read_samples(run_dir / "samples.jsonl")
    assert [row["step"] for row in samples] == [step for step in range(STEPS + 1) for _ in base_answers]
    assert [row["answer"] for row in samples[: len(base_answers)]] == [tokenizer.decode(ids) for ids in base_answers]
    assert all(row["prompt"].endswith("<|im_start|>assistant\n") and row["reference"] for row in samples)


def documents_by_row(shards):
    return [row for path in shard_files(shards, read_manifest(shards), "train") for row in read_rows(path)]
