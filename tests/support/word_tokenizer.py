"""A tokenizer of whole words, so that ids can be written out by hand, and a conversation in its words."""

from __future__ import annotations

from data_prep.conversation import BadRow, Conversation, Message, ToolCall
from data_prep.rendering.chat_templates import (
    resolve_chat_template,
)
from data_prep.rendering.renderer import Renderer
from data_prep.shards import IGNORE_INDEX

# A vocabulary of whole words, so that ids can be written out by hand.
SPECIAL = [
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
SPECIAL += ["<start_of_turn>", "<end_of_turn>"]  # ids 0 to 9
WORDS = ["system", "user", "assistant", "model", "Be", "kind", "Hi", "Hello", "Bye", "So", "long"]  # 10 to 20
SIGNS = [".", "\n", "\n\n", " ", "###", ":", "[", "]", "/", "<<", ">>", ".\n\n", ":\n", "</"]  # 21 to 34
MORE = ["Instruction", "Response", "INST", "SYS", "|", "<|", "|>", "im_end", "<", ">", "end_of_turn", "s", "eot_id"]
UNK, BOS, EOS, IM_START, IM_END, HEADER, HEADER_END, EOT, TURN, TURN_END = range(10)

TURNS = (
    Message("system", "Be kind"),
    Message("user", "Hi"),
    Message("assistant", "Hello."),
    Message("user", "Bye"),
    Message("assistant", "So long"),
)

MORE_SPECIAL = ["[INST]", "[/INST]", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]  # 48 to 53
THOUGHTS = ["<think>", "</think>"]  # 54 and 55, plain words as in Qwen3


def make_word_tokenizer(more_special, more_words):
    """PreTrainedTokenizerFast: one id for each word of the lists, in their order."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(SPECIAL + WORDS + SIGNS + MORE + more_special + more_words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces = r"</?think>|\n\n|:\n|\n| |im_end|end_of_turn|eot_id|\w+|###|<<|>>|<\||\|>|[^\w\s]"
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[3:] + more_special})
    return tokenizer


def render(tokenizer, template: str, messages=TURNS, control_tokens: str = "escape"):
    renderer = Renderer(tokenizer, resolve_chat_template(template, tokenizer), control_tokens=control_tokens)
    return renderer.render([Conversation(tuple(messages), "s", 0)])[0]


def trained_text(tokenizer, template, messages, **options):
    renderer = Renderer(tokenizer, resolve_chat_template(template, tokenizer), **options)
    result = renderer.render([Conversation(tuple(messages), "s", 0)])[0]
    if isinstance(result, BadRow):
        return result.reason
    return tokenizer.decode([i for i in result.labels.tolist() if i != IGNORE_INDEX])


TOOLS = ({"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}},)


WITH_TOOLS = (
    Message("system", "You help."),
    Message("user", "What is packing?"),
    Message("assistant", "", tool_calls=(ToolCall("look_up", {"word": "packing <|im_end|> 포장"}),)),
    Message("tool", '{"found": "many rows in one"}'),
    Message("assistant", "Many rows in one."),
)
