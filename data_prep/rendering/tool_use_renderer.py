"""A tokenizer's two chat templates: `tool_use` renders the rows with tools, the default one the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_prep.conversation import BadRow, Conversation
from data_prep.rendering.chat_templates import ChatTemplate
from data_prep.rendering.labels import TokenizedExample
from data_prep.rendering.renderer import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def renderer_for(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, **options: Any) -> Renderer:
    """What renders rows by a template, with the options of Renderer.

    Raises:
        ValueError: see Renderer.
    """
    kind = Renderer if template.tool_use is None else ToolUseRenderer
    return kind(tokenizer, template, **options)


class ToolUseRenderer(Renderer):
    """Renders rows with tools by `template.tool_use`, and the others by the template: see Renderer.

    Where `tool_use` cannot be trained on, rows with tools are dropped with the reason ("tool_use_refused").
    """

    _with_tools: Renderer | BadRow | None = None  # None until the default template is looked at

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, **options: Any):
        super().__init__(tokenizer, template, **options)
        assert template.tool_use is not None
        try:
            self._with_tools = Renderer(tokenizer, template.tool_use, shared=self, **options)
        except ValueError as error:
            self._with_tools = BadRow("tool_use_refused", _refusal(error))

    def render(self, conversations: Sequence[Conversation]) -> list[TokenizedExample | BadRow]:
        """See Renderer."""
        others = iter(super().render([c for c in conversations if not c.tools]))
        with_tools = iter(self._render_with_tools([c for c in conversations if c.tools]))
        return [next(with_tools if c.tools else others) for c in conversations]

    def _render_with_tools(self, conversations: Sequence[Conversation]) -> list[TokenizedExample | BadRow]:
        if isinstance(self._with_tools, Renderer):
            return self._with_tools.render(conversations)
        return [self._with_tools for _ in conversations if self._with_tools]

    def _text_of(self, conversation: Conversation) -> str:
        if conversation.tools and isinstance(self._with_tools, Renderer):
            return self._with_tools._text_of(conversation)
        return super()._text_of(conversation)


def _refusal(error: ValueError) -> str:
    return (
        f"the row has tools, for which the tokenizer has a template of its own, and {error}. Name the template of a "
        "tokenizer that can be trained on (`chat_template`), or leave tools out of the row"
    )
