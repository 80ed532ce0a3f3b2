"""Messages of the libraries that a user can do nothing about: left out, each by its exact words.

What is not in these tables is shown. Bars are shown on a terminal only, by the first rank.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Message:
    """A message of a library."""

    logger: str  # that says it; empty: it is a warning, or is printed
    words: str  # that it begins with, after the rank
    file: str  # of the library that holds these words; a test looks whether it still does
    reason: str  # why it is no news

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether its logger may say a record. Given to a logger twice, it counts once."""
        return self.words not in str(record.msg)


LOGGED = (
    Message(
        logger="DeepSpeed",
        words="Setting accelerator to CPU. If you have GPU or other accelerator",
        file="deepspeed/accelerator/real_accelerator.py",
        reason="training on a CPU without use_cpu is refused",
    ),
    Message(
        logger="trl.trainer.sft_trainer",
        words="You are using a per_device_train_batch_size of 1 with padding-free training.",
        file="trl/trainer/sft_trainer.py",
        reason="rows are packed already",
    ),
    Message(
        logger="transformers.trainer_utils",
        words="The tokenizer has new PAD/BOS/EOS tokens that differ from the model config and generation config.",
        file="transformers/trainer_utils.py",
        reason="the shards' tokenizer and template decide what ends an answer",
    ),
    Message(
        logger="accelerate.accelerator",
        words="Gradient accumulation steps mismatch: GradientAccumulationPlugin has ",
        file="accelerate/accelerator.py",
        reason="the Trainer accumulates; preflight compares the DeepSpeed file with the run config",
    ),
    Message(
        logger="bitsandbytes.backends.cpu.ops",
        words="Failed to load CPU gemm_4bit_forward from kernels-community: ",
        file="bitsandbytes/backends/cpu/ops.py",
        reason="a kernel for inference",
    ),
    Message(
        logger="transformers.training_args",
        words="The speedups for torchdynamo mostly come with GPU Ampere or higher",
        file="transformers/training_args.py",
        reason="torch_compile was asked for; older GPUs and CPUs are known to whoever takes them",
    ),
    Message(
        logger="transformers.trainer",
        words="There were missing keys in the checkpoint model loaded: ['lm_head.weight'].",
        file="transformers/trainer.py",
        reason="a tied head is saved once, as the embeddings",
    ),
)
WARNED = (
    Message(
        logger="",
        words="`is_gradient_checkpointing` is deprecated and will be removed in v6.",
        file="transformers/modeling_utils.py",
        reason="peft asks by the old name",
    ),
)
PRINTED = Message(
    logger="",
    words=" built successfully",
    file="deepspeed/comm/torch.py",
    reason="its shared-memory operator on the CPU",
)

OFFLINE = Message(
    logger="",
    words="[INFO] Running in WANDB offline mode",
    file="transformers/integrations/integration_utils.py",
    reason="said where W&B is not used, too; W&B says it itself",
)


def set_up() -> None:
    """Call it before the libraries are imported: some speak while they are."""
    for message in LOGGED:
        logging.getLogger(message.logger).addFilter(message)
    for message in WARNED:
        words = message.words.replace("`", "[`]")
        warnings.filterwarnings("ignore", message=words, category=FutureWarning)
    hide_bars()


def hide_bars() -> None:
    """Keep transformers' bars, of loading and writing, out of a log: they are for a terminal."""
    if not shows_bars():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # transformers' follow it
        if loaded := sys.modules.get("transformers.utils.logging"):
            loaded.disable_progress_bar()  # it has read the environment already


def shows_bars() -> bool:
    """Whether somebody looks at a terminal, and this is the rank that shows bars there."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


def silence_deepspeed() -> None:
    """Its shared-memory operator is announced by a bare print, in each process. Call it once DeepSpeed is wanted."""
    module: Any = importlib.import_module("deepspeed.comm.torch")  # the name in its package is torch itself

    def without_news(*texts: Any, **options: Any) -> None:
        if not any(PRINTED.words in str(text) for text in texts):
            print(*texts, **options)

    module.print = without_news


def import_integrations() -> None:
    """transformers' trackers, which print at their import what WANDB_MODE is. Call it before anything imports them."""
    if os.environ.get("WANDB_MODE") != "offline":
        return
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        importlib.import_module("transformers.integrations.integration_utils")
    print("".join(line for line in said.getvalue().splitlines(True) if OFFLINE.words not in line), end="")
