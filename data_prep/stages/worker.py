"""Imports of a worker process; the server that workers are forked from imports them once (see pool.py).

Not transformers' tokenizer classes and torch: a renderer comes pickled, with its tokenizer in the form of `tokenizers`.
"""

import jinja2  # noqa: F401
import numpy  # noqa: F401
import pyarrow.ipc  # noqa: F401
import tokenizers  # noqa: F401
from transformers.utils import chat_template_utils  # noqa: F401

from data_prep.stages import pack_stage, tokenize_stage  # noqa: F401
