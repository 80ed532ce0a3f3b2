"""Answers to the same held-out prompts at each evaluation: greedy, so that only the model changes them.

A prompt is a document of the eval split up to its first trained token; what follows is the reference. The processes
share the prompts; where each holds only a part of the weights (ZeRO-3, FSDP, expert parallelism), all generate as often
as any.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.shards import IGNORE_INDEX
from train.model.expert_parallel import holds_a_part
from train.run import atomic_files, watchdog
from train.run.atomic_files import write_text_atomically
from train.run.distributed import gather, is_first
from train.run_report.run_files import QUESTIONS, SAMPLES, read_samples
from train.serving.chat_model import ChatModel
from train.serving.prompt_files import read_file
from train.serving.prompt_rows import check_chat

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("step", "source", "prompt", "answer", "reference")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A held-out document, cut where its first answer begins."""

    source: str
    prompt_ids: list[int]
    reference_ids: list[int]


def choose_prompts(rows: Dataset, source_names: list[str], per_source: int, most_tokens: int) -> list[Prompt]:
    """The first documents of each source in the eval split whose prompts have at most `most_tokens` tokens."""
    found: dict[int, list[Prompt]] = {index: [] for index in range(len(source_names))}
    for row in rows:
        start = 0
        for length, source in zip(row["seq_lengths"], row["sources"], strict=True):
            ids, labels = (row[name][start : start + length] for name in ("input_ids", "labels"))
            begin = next((i for i, label in enumerate(labels) if label != IGNORE_INDEX), 0)
            if 0 < begin <= most_tokens and len(found[source]) < per_source:
                prompt = Prompt(source=source_names[source], prompt_ids=ids[:begin], reference_ids=ids[begin:])
                found[source].append(prompt)
            start += length
        if all(len(prompts) == per_source for prompts in found.values()):
            break
    return [prompt for prompts in found.values() for prompt in prompts]


def own_questions(file: str, tokenizer: Any, most_tokens: int) -> list[Prompt]:
    """The questions of a file, through the tokenizer's chat template; without a reference.

    Raises:
        ValueError: the file cannot be read, or a question is refused by the template or longer than `most_tokens`.
    """
    chats = read_file(Path(file), "sample_questions")
    model = ChatModel(f"sample_questions {file}", None, tokenizer)
    prompts = []
    for number, chat in enumerate(chats, 1):
        check_chat(chat)
        ids = model.prompt_ids(chat.messages, chat.tools)
        if len(ids) > most_tokens:
            raise ValueError(
                f"sample_questions {file}: question {number} has {len(ids)} tokens, at most {most_tokens} leave room "
                "for an answer (seq_len less sample_max_new_tokens): shorten it"
            )
        prompts.append(Prompt(source=QUESTIONS, prompt_ids=ids, reference_ids=[]))
    return prompts


class Sampler:
    """Answers the prompts and keeps the answers in the run directory.

    Args:
        end_token_ids: tokens that end an answer.
    """

    def __init__(
        self, prompts: list[Prompt], tokenizer: Any, run_dir: Path, *, end_token_ids: list[int], max_new_tokens: int
    ):
        self._prompts, self._tokenizer, self._file = prompts, tokenizer, run_dir / SAMPLES
        self._end, self._max_new_tokens = end_token_ids, max_new_tokens

    def __call__(self, model: Any, step: int) -> list[dict[str, Any]]:
        """The answers of this step, in the order of the prompts, on every process; each must call it."""
        import torch

        rank, world = 0, 1
        if torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        mine = []
        for first in range(0, len(self._prompts), world):
            number = first + rank
            answer = self._answer(model, self._prompts[number if number < len(self._prompts) else first])
            mine.append((number, answer))
            watchdog.progress()
        answers = dict(pair for pairs in gather(mine) for pair in pairs)
        rows = [self._row(step, prompt, answers[i]) for i, prompt in enumerate(self._prompts)]
        if is_first():
            with atomic_files.warning(f"the answers of step {step} are not kept in {self._file}"):
                self._keep(step, rows)
        return rows

    def _answer(self, model: Any, prompt: Prompt) -> list[int]:
        """Greedy. One prompt at a time: without padding every attention back end is right."""
        import torch
        from transformers import GenerationConfig

        ids = torch.tensor([prompt.prompt_ids], device=model.device)
        config = GenerationConfig(
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            eos_token_id=self._end,
            pad_token_id=self._tokenizer.pad_token_id,
            use_cache=True,
        )
        # transformers sees by itself where each process holds only a part of the weights, but not of the experts.
        together = True if holds_a_part(model) else None
        with torch.no_grad():
            generated = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, synced_gpus=together
            )
        return generated[0, ids.shape[1] :].tolist()

    def _row(self, step: int, prompt: Prompt, answer: list[int]) -> dict[str, Any]:
        texts = [self._tokenizer.decode(ids) for ids in (prompt.prompt_ids, answer, prompt.reference_ids)]
        return dict(zip(COLUMNS, (step, prompt.source, *texts), strict=True))

    def _keep(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Write them to the file, in place of those of this and later steps, which a resumed run makes again."""
        kept = [row for row in read_samples(self._file) if row["step"] < step]
        write_text_atomically(self._file, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in kept + rows))
