"""System prompts that a template prints before a last question alone, and not once the result of a call follows.

So does Mistral NeMo's: a server prompts the answer to a result without the system prompt, and so it is trained.
"""

from __future__ import annotations

from dataclasses import replace

from data_prep.conversation import BadRow, Conversation, Message
from data_prep.rendering.applied_template import AppliedTemplate
from data_prep.rendering.rewrites import SYSTEM, Removal
from data_prep.rendering.template_probe import CALLING, QUESTION, RESULT

_PROMPT = Message("system", "Answer as a sailor.")


def are_left_out_after_results(apply: AppliedTemplate) -> bool:
    """Whether the template's prompts hold the system prompt after a question, and not after the result of a call."""
    asked = [message.as_dict() for message in (_PROMPT, QUESTION)]
    called = [*asked, CALLING.as_dict(), RESULT.as_dict()]
    try:
        texts = [apply(messages, None, prompt=True)[0] for messages in (asked, called)]
    except BadRow:
        return False
    return [_PROMPT.content in text for text in texts] == [True, False]


def as_printed(conversation: Conversation) -> tuple[Conversation, list[Removal]]:
    """A row without the system prompts that such a template does not print, and those."""
    messages = conversation.messages
    if not conversation.is_prompted or [m.role for m in messages[-2:-1]] != ["tool"]:
        return conversation, []
    others = tuple(m for m in messages if m.role != "system")
    return replace(conversation, messages=others), [Removal(SYSTEM, m.content) for m in messages if m.role == "system"]
