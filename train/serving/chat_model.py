"""A model that answers chats: loading, prompts as token ids, and text that streams without broken characters."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from train.serving.tool_prompts import check_complete, place_reasoning

DEFAULT_MAX_NEW_TOKENS = 512  # where neither the model's generation config nor a flag says
# Those that templates have for it, as the data was rendered.
THINKING_NAMES = ("enable_thinking", "thinking", "reasoning")
SAMPLING_ONLY = ("temperature", "top_p", "top_k")
_BROKEN = "�"  # what decoding puts for bytes that are not (yet) a character


@dataclass(frozen=True)
class Answer:
    """One answer to one chat."""

    text: str
    prompt_tokens: int
    new_tokens: int  # the end token included
    ended: bool  # by an end token or a stop text, not by max_new_tokens


class TextStream:
    """Token ids in, text out as soon as its characters are whole; a Korean syllable or an emoji may be several tokens.

    Decodes only a short window at each token: what was given out last, for its effect on spaces, and what is new.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._ids: list[int] = []
        self._given_from = 0  # start of the ids whose text was given out last
        self._new_from = 0  # start of the ids whose text was not given out yet

    def push(self, token_id: int) -> str:
        """The text that this token makes whole; often empty inside a character."""
        self._ids.append(token_id)
        text = self._new_text()
        if not text or text.endswith(_BROKEN):
            return ""
        self._given_from, self._new_from = self._new_from, len(self._ids)
        return text

    def finish(self) -> str:
        """What is left: bytes that never became a character show as U+FFFD."""
        text = self._new_text()
        self._given_from = self._new_from = len(self._ids)
        return text

    def _new_text(self) -> str:
        given = self._decode(self._ids[self._given_from : self._new_from])
        return self._decode(self._ids[self._given_from :])[len(given) :]


class _Listener:
    """What `generate(streamer=...)` talks to: the prompt first, then token by token."""

    def __init__(self, on_token: Callable[[int], None]):
        self._on_token = on_token
        self._prompt_is_next = True

    def put(self, value: Any) -> None:
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        for token_id in value.flatten().tolist():
            self._on_token(token_id)

    def end(self) -> None:
        pass


@dataclass
class ChatModel:
    """A model with the tokenizer whose chat template asks it."""

    name: str
    model: Any
    tokenizer: Any

    def prompt_ids(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[int]:
        """The chat as token ids, up to where the answer begins. Text in it that spells a control token stays text.

        Args:
            messages, tools: as train.serving.prompt_rows reads them.
            enable_thinking: whether the model is asked to think before it answers; None: as the template has it.
            chat_template_kwargs: more variables of the template.

        Raises:
            ValueError: the tokenizer has no chat template, or the template refuses the chat, leaves parts of it out,
                cannot ask for what `enable_thinking` says, or does not read one of the variables.
        """
        if not self.tokenizer.chat_template:
            raise ValueError(f"{self.name}: the tokenizer has no chat template: export the model with packhaul export")
        more = chat_template_kwargs or {}
        self._check_read(more, tools)
        messages = place_reasoning(messages, self._text)
        check_complete(self.name, messages, tools or [], self._text)
        more = {**more, **self._asked_to_think(messages, tools, enable_thinking, more)}
        rendering = {"sanitize_control_tokens": True, "return_dict": True}
        encoded: Any = self._apply(messages, tools, **rendering, **more)
        return encoded["input_ids"]

    def _check_read(self, more: dict[str, Any], tools: list[dict[str, Any]] | None) -> None:
        """Refuse a variable that the template does not name: it would do nothing."""
        template = self.tokenizer.get_chat_template(tools=tools or None)
        for name in more:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise ValueError(
                    f"{self.name}: --chat_template_kwargs: the chat template does not read {name!r}: look into "
                    "chat_template.jinja for the names that it has, or leave it out"
                )

    def _asked_to_think(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        enable_thinking: bool | None,
        more: dict[str, Any],
    ) -> dict[str, bool]:
        """What the template is told."""
        if enable_thinking is None:
            return {}
        asked = [dict.fromkeys(THINKING_NAMES, value) for value in (True, False)]
        texts = [self._apply(messages, tools, tokenize=False, **{**more, **how}) for how in asked]
        if texts[0] == texts[1]:
            raise ValueError(
                f"{self.name}: --enable_thinking: expected a chat template that asks models to think or not to; this "
                "one makes the same prompt for both. Leave the option out"
            )
        return dict.fromkeys(THINKING_NAMES, enable_thinking)

    def _text(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        return str(self._apply(messages, tools, tokenize=False))

    def _apply(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **how: Any) -> Any:
        from jinja2.exceptions import TemplateError

        try:
            return self.tokenizer.apply_chat_template(messages, tools=tools or None, add_generation_prompt=True, **how)
        except TemplateError as error:
            raise ValueError(f"{self.name}: the chat template refuses {messages}: {error.message}") from None

    def generation_config(self, overrides: dict[str, Any], num_prompt_tokens: int) -> Any:
        """The model's own config, changed by `overrides` and cut to what the context has left.

        Raises:
            ValueError: a sampling option without sampling, an impossible value, or a prompt that fills the context.
        """
        config = copy.deepcopy(self.model.generation_config)
        if config.max_new_tokens is None:
            config.max_new_tokens = DEFAULT_MAX_NEW_TOKENS
        config.max_length = None
        config.update(**overrides)
        idle = [name for name in SAMPLING_ONLY if name in overrides]
        if idle and not config.do_sample:
            raise ValueError(f"--{idle[0]} does nothing: {self.name} does not sample by default; add --do_sample")
        left = self._context() - num_prompt_tokens
        if left < 1:
            raise ValueError(f"{self.name}: the prompt has {num_prompt_tokens} tokens, the context {self._context()}")
        config.max_new_tokens = min(config.max_new_tokens, left)
        config.validate()
        return config

    def answer(self, ids: list[int], overrides: dict[str, Any], *, seed: int, on_text: Callable[[str], None]) -> Answer:
        """Generate one answer, handing its text to `on_text` piece by piece; the same seed gives the same answer."""
        config = self.generation_config(overrides, len(ids))
        ends = end_ids(config)
        stream = TextStream(self._decode)
        generated: list[int] = []
        pieces: list[str] = []

        def give(text: str) -> None:
            if text:
                pieces.append(text)
                on_text(text)

        def on_token(token_id: int) -> None:
            generated.append(token_id)
            if token_id not in ends:  # an end token that is not marked special would be shown
                give(stream.push(token_id))

        self._generate([ids], config, seed, _Listener(on_token))
        give(stream.finish())
        return self._answer("".join(pieces), ids, generated, config)

    def answer_batch(self, prompts: list[list[int]], overrides: dict[str, Any], *, seed: int) -> list[Answer]:
        """Generate one answer to each prompt at once; greedy ones are those of `answer`, up to rounding.

        Raises:
            ValueError: as `generation_config`, for the longest prompt.
        """
        config = self.generation_config(overrides, max(map(len, prompts)))
        answers = []
        for ids, row in zip(prompts, self._generate(prompts, config, seed, None), strict=True):
            generated = _until_end(row, end_ids(config), config.pad_token_id)
            shown = generated[:-1] if generated and generated[-1] in end_ids(config) else generated
            answers.append(self._answer(self._decode(shown), ids, generated, config))
        return answers

    def _generate(self, prompts: list[list[int]], config: Any, seed: int, listener: _Listener | None) -> Any:
        """(prompts, new tokens): token ids; shorter prompts are padded on the left."""
        import torch
        from transformers import set_seed

        longest = max(map(len, prompts))
        pad = config.pad_token_id if config.pad_token_id is not None else 0  # masked: any id will do
        rows = [[pad] * (longest - len(ids)) + ids for ids in prompts]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts]
        set_seed(seed)
        output = self.model.generate(
            torch.tensor(rows, device=self.model.device),
            attention_mask=torch.tensor(mask, device=self.model.device),
            generation_config=config,
            streamer=listener,
            tokenizer=self.tokenizer if config.stop_strings else None,
        )
        return output[:, longest:].tolist()

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _answer(self, text: str, prompt: list[int], generated: list[int], config: Any) -> Answer:
        at_end = bool(generated) and generated[-1] in end_ids(config)
        stops = config.stop_strings or []  # a text, or a list of them
        stopped = any(stop in text for stop in ([stops] if isinstance(stops, str) else stops))
        return Answer(text, len(prompt), len(generated), at_end or stopped)

    def _context(self) -> int:
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 62


def end_ids(config: Any) -> list[int]:
    """The ids that end an answer."""
    return config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]


def _until_end(row: list[int], ends: list[int], pad: int | None) -> list[int]:
    """A row of a batch up to its first end token, or without the padding behind a stop text."""
    for place, token_id in enumerate(row):
        if token_id in ends:
            return row[: place + 1]
    while row and row[-1] == pad:
        row = row[:-1]
    return row
