"""A tokenizer's named chat templates as one: transformers takes `tool_use` where it is given tools, else `default`.

Older tokenizers (Hermes 2 and 3, Command R+) come with several. Any other, such as `rag`, is only taken by
`apply_chat_template(chat_template=NAME)`.
"""

from __future__ import annotations

from typing import Any

DEFAULT, TOOL_USE = "default", "tool_use"

# What a template for rows with tools is probed with: some fail without any, or without a description and parameters.
PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "The word."}},
            "required": ["word"],
        },
    },
}


def by_tools(named: dict[str, str]) -> str:
    """One template that prints what transformers prints with the two.

    Jinja, as transformers sets it, drops the line break after a tag, the last one of a template, and the blanks of a
    line before a tag; not before `{%+`.
    """
    tools, others = (named[name].removesuffix("\n") for name in (TOOL_USE, DEFAULT))
    head = "{% if tools is defined and tools is not none %}\n"
    return f"{head}{tools}{{%+ else %}}\n{others}{{%+ endif %}}"
