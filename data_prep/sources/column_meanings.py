"""Columns and keys that change what a row means: what each name says, and what to do about one that is not read.

Nobody's list of names is complete, so what is not read is named in any case; a name that is known to change what a row
means is never passed over.
"""

from __future__ import annotations

import math
import re
from typing import Any

from data_prep.conversation import BadRow

# Parts of the prompt: without them, the answers that are trained would hang in the air.
CONTEXT = frozenset(
    (
        *("context", "contexts", "input", "inputs", "instruction", "instructions", "background", "knowledge"),
        *("history", "chat_history", "conversation_history", "dialogue_history"),
        *("system", "system_prompt", "system_message", "tools", "functions"),
        *("documents", "document", "passage", "passages"),
    )
)
# Answers that are preferred over others, or judged: to train each of them alike is to train the bad ones.
PREFERENCE = frozenset(
    (
        *("chosen", "chosen_response", "chosen_messages", "label", "labels", "kto_tag", "completions"),
        *("rejected", "rejected_response", "rejected_responses", "rejected_messages", "rejected_answer"),
    )
)
_TURN_CONTEXT = frozenset(("tools", "functions", "documents"))  # within a message
_REJECTED = frozenset(name for name in PREFERENCE if name.startswith("rejected"))
MEDIA = frozenset(
    (
        *("image", "images", "video", "videos", "audio", "audios", "image_url", "input_audio", "pixel_values"),
        *("objects", "bbox"),
    )
)
# Flags: 1 or true asks for training, 0 or false against it. Of MASK_FLAGS it is the other way round.
# In the words of OpenAI, mistral-finetune, LLaMA-Factory, Axolotl, ms-swift, XTuner, verl, slime, Tinker, torchtune.
TRAIN_FLAGS: tuple[str, ...] = (
    *("train", "weight", "loss_weight", "training", "trainable", "loss", "loss_scale", "loss_mask"),
    *("step_loss_mask", "is_trained", "learn"),
)
MASK_FLAGS = ("masked", "mask", "ignore_loss", "no_loss", "no_train", "skip_loss")
SPAN_FLAGS = ("train_detail", "training_detail")  # Axolotl: which characters of a turn are trained
ROW_FLAGS = ("sample_weight", "example_weight", "row_weight")  # of whole rows, besides the above
_FLAG_LIKE = re.compile(r"(^|_)(loss|train|trained|trainable|training|masked?|weight|learn|supervised)(_|$)")


def is_filled(cell: Any) -> bool:
    """Whether a cell holds something: no null, NaN, blank text or empty list or object."""
    if isinstance(cell, str):
        return bool(cell.strip())
    if isinstance(cell, list | dict):
        return bool(cell)
    return cell is not None and cell == cell


def is_nan(cell: Any) -> bool:
    """Whether a cell is NaN, which pandas writes for what is missing."""
    return isinstance(cell, float) and math.isnan(cell)


def is_flag_like(name: str) -> bool:
    """Whether a key looks as if it said what is trained."""
    return _FLAG_LIKE.search(name.lower()) is not None


def changes_meaning(name: str, form: str) -> bool:
    """Whether a filled column of this name, which nothing reads, costs the row. A plain text has no prompt to miss."""
    lower = _plain(name)
    return lower in PREFERENCE or lower in MEDIA or (lower in CONTEXT and form != "text")


def is_media(name: str) -> bool:
    """Whether the column holds what is not text."""
    return _plain(name) in MEDIA


def changes_turn(key: str) -> bool:
    """Whether a filled key of a message, which nothing reads, costs the row."""
    lower = _plain(key)
    return lower in MEDIA or lower in PREFERENCE or lower in _TURN_CONTEXT


def answers_read(column: str) -> frozenset[str]:
    """The columns that no longer matter once this one is read: the rejected answers next to the chosen ones."""
    return _REJECTED if _plain(column).startswith("chosen") else frozenset()


def remedy(name: str, form: str) -> str:
    """What to do about a filled column that changes what the row means, and that the form does not read."""
    lower, leave = _plain(name), f"or leave it out on purpose: `ignore: [{name}]`"
    if lower in MEDIA:
        return f"only text is trained, so such rows are dropped; if the text stands without it: `ignore: [{name}]`"
    if lower in PREFERENCE:
        return _preference_remedy(lower, leave)
    if lower.startswith("system"):
        return f"read it with `columns: {{system: {name}}}`, {leave}"
    if lower.endswith("history"):
        return f"read it as earlier turns with `columns: {{history: {name}}}` (alpaca, dolly, question_answer), {leave}"
    if lower in ("tools", "functions"):
        return f"read it with `columns: {{tools: {name}}}`, {leave}"
    return (
        f"the answers may depend on it, and form {form} does not read it: map it as the input of alpaca, the context "
        f"of dolly or `columns: {{system: {name}}}`, put it into the prompt with a `transform`, {leave}"
    )


def _preference_remedy(lower: str, leave: str) -> str:
    if lower in ("label", "labels", "kto_tag"):
        return f"it may say which answers are bad ones: leave those rows out with a `transform`, {leave}"
    return (
        "these are answers to compare (DPO, ORPO), and training takes one: for whole conversations `form: messages`, "
        "`columns: {messages: chosen}`; for what follows a prompt `form: prompt_completion`, "
        f"`columns: {{prompt: COLUMN, completion: chosen}}`; {leave}"
    )


def read_flag(value: Any, where: str) -> bool | None:
    """Whether a flag asks for training; None where it says nothing.

    Raises:
        BadRow: neither 0 nor 1.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _FLAG_WORDS:  # of CSV files
        return _FLAG_WORDS[value.strip().lower()]
    if isinstance(value, float) and value != value:
        return None
    said = f"{where}: expected 0 or 1, as it is trained or not; found {value!r:.60}"
    raise BadRow("fractional_weight", f"{said}; if it means something else, name it in `ignore`")


_FLAG_WORDS = {"": None, "0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")
