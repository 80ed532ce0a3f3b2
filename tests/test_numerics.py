"""Loss, gradient norm, weights and evaluation equal an independent reference: one process, unpacked, fp32, own loss."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.training import document_loss, documents, history, make_shards, run_config, train

STEPS = 3
LEARNING_RATE = 1e-3
MAX_GRAD_NORM = 1.0
ANSWERS = {"short": [1] * 12, "long": [6, 6]}  # rows of very different numbers of trained tokens


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    return make_shards(tmp_path_factory.mktemp("numerics"), tiny_tokenizer.name_or_path, ANSWERS, eval_fraction=0.2)


@pytest.fixture(scope="module")
def reference(shards, tiny_model_dir):
    """Per step (loss, gradient norm, evaluation by source), and the final weights.

    One epoch is one step, so the order of the rows does not matter."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir("llama"), dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    train_documents, eval_documents = documents(shards, "train"), documents(shards, "eval")
    steps = []
    for _ in range(STEPS):
        losses = [document_loss(model, d) for d in train_documents]
        loss = sum(x for x, _ in losses) / sum(n for _, n in losses)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        steps.append((loss.item(), norm.item(), evaluate(model, eval_documents)))
    return steps, model.state_dict()


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
def test_two_processes_equal_the_reference(stage, eval_batch, shards, reference, tiny_model_dir, tmp_path):
    steps, weights = reference
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
    )
    output = train(f"cpu_zero{stage}", config, tmp_path / "log")
    assert "2 process(es), DEEPSPEED" in output
    logged = history(tmp_path / "run")
    trained, evaluated = [h for h in logged if "loss" in h], [h for h in logged if "eval_loss" in h]
    assert len(trained) == len(evaluated) == STEPS
    for (loss, norm, evaluation), got, got_evaluation in zip(steps, trained, evaluated, strict=True):
        assert got["loss"] == pytest.approx(loss, rel=2e-6)
        assert got["grad_norm"] == pytest.approx(norm, rel=2e-5)
        assert {k: got_evaluation[k] for k in evaluation} == pytest.approx(evaluation, rel=2e-6)
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "run", dtype=torch.float32).state_dict()
    for name, tensor in weights.items():
        torch.testing.assert_close(final[name], tensor, rtol=0, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


def documents_by_row(shards):
    from data_prep.shards import read_manifest, read_rows, shard_files

    return [row for path in shard_files(shards, read_manifest(shards), "train") for row in read_rows(path)]
