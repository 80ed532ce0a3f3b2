"""A model that answers chats: loading, prompts as token ids, and text that streams without broken characters."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.serving.adapters import check_exported
from train.serving.tool_prompts import check_complete, place_reasoning

DEFAULT_MAX_NEW_TOKENS = 512  # where neither the model's generation config nor a flag says
THINKING_NAMES = ("enable_thinking", "thinking")  # those that templates have for it, as the data was rendered
SAMPLING_ONLY = ("temperature", "top_p", "top_k")
_BROKEN = "�"  # what decoding puts for bytes that are not (yet) a character


@dataclass(frozen=True)
class Answer:
    """One answer to one chat."""

    text: str
    prompt_tokens: int
    new_tokens: int  # the end token included
    ended: bool  # by an end token, not by max_new_tokens


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
    ) -> list[int]:
        """The chat as token ids, up to where the answer begins. Text in it that spells a control token stays text.

        Args:
            messages, tools: as train.serving.prompt_rows reads them.
            enable_thinking: whether the model is asked to think before it answers; None: as the template has it.

        Raises:
            ValueError: the tokenizer has no chat template, or the template refuses the chat, leaves parts of it out, or
                cannot ask for what `enable_thinking` says.
        """
        if not self.tokenizer.chat_template:
            raise ValueError(f"{self.name}: the tokenizer has no chat template: export the model with train.export")
        messages = place_reasoning(messages, self._text)
        check_complete(self.name, messages, tools or [], self._text)
        asked = self._asked_to_think(messages, tools, enable_thinking)
        rendering = {"sanitize_control_tokens": True, "return_dict": True}
        encoded: Any = self._apply(messages, tools, **rendering, **asked)
        return encoded["input_ids"]

    def _asked_to_think(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, enable_thinking: bool | None
    ) -> dict[str, bool]:
        """What the template is told."""
        if enable_thinking is None:
            return {}
        asked = [dict.fromkeys(THINKING_NAMES, value) for value in (True, False)]
        texts = [self._apply(messages, tools, tokenize=False, **how) for how in asked]
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
        import torch
        from transformers import set_seed

        config = self.generation_config(overrides, len(ids))
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        stream = TextStream(lambda part: self.tokenizer.decode(part, skip_special_tokens=True))
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

        prompt = torch.tensor([ids], device=self.model.device)
        set_seed(seed)
        self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=config,
            streamer=_Listener(on_token),
            tokenizer=self.tokenizer if config.stop_strings else None,
        )
        give(stream.finish())
        return Answer("".join(pieces), len(ids), len(generated), bool(generated) and generated[-1] in ends)

    def _context(self) -> int:
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 62


def check_folder(path: str) -> None:
    """Refuse what is plainly not an exported model, before anything heavy is loaded.

    Raises:
        ValueError: no such folder, a file, a folder without a model, or a run or checkpoint that was not exported.
    """
    folder = Path(path)
    if not folder.exists():
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and not path.startswith("."):
            return  # perhaps an id on the hub
        raise ValueError(f"{path}: expected the folder of an exported model or an id on the hub, found no such folder")
    if not folder.is_dir():
        raise ValueError(f"{path}: expected the folder of an exported model, found a file")
    signs = ("complete.json", "trainer_state.json", "run.json", "latest")
    if any((folder / sign).exists() for sign in signs) or any(folder.glob("checkpoint-*")):
        raise ValueError(
            f"{path} is a run or a checkpoint, not an export: run\n"
            f"  python -m train.export --checkpoint {path} --output DIR\nand give DIR"
        )
    if not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"{path}: expected the folder of an exported model (config.json), found none in it")


def load(path: str) -> ChatModel:
    """Load a model from a folder or the hub, on the GPUs if there are any, in its own dtype.

    Raises:
        ValueError: it cannot be loaded, or is an adapter of another base model than the one that is there.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    check_exported(Path(path))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        device_map = "auto" if torch.cuda.is_available() else None
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map=device_map)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no model that can be loaded, in a folder or on the hub. Found: {error}") from None
    if (Path(path) / "generation_config.json").exists():  # of an adapter, the base's would be taken
        model.generation_config = GenerationConfig.from_pretrained(path)
    return ChatModel(path, model.eval(), tokenizer)


def borrow_template(base: ChatModel, tuned: ChatModel) -> bool:
    """Let a base model without a chat template be asked through the tuned model's tokenizer; whether that was needed.

    Raises:
        ValueError: the base model has fewer embeddings than the tokenizer has tokens.
    """
    if base.tokenizer.chat_template:
        return False
    rows = base.model.get_input_embeddings().weight.shape[0]
    if rows < len(tuned.tokenizer):
        raise ValueError(
            f"{base.name} has no chat template of its own, and only {rows} embeddings for the {len(tuned.tokenizer)} "
            f"tokens of {tuned.name}: give the base model that was tuned"
        )
    base.tokenizer = tuned.tokenizer
    base.model.generation_config.eos_token_id = tuned.model.generation_config.eos_token_id
    base.model.generation_config.pad_token_id = tuned.model.generation_config.pad_token_id
    return True
