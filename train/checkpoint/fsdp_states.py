"""States that FSDP2 shards: of which kind a launch saves them, and what of the model is gathered next to shards."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.checkpoint.gathered_weights import gather, keep_for
from train.checkpoint.pending_save import Save
from train.run.distributed import is_first

if TYPE_CHECKING:
    from train.checkpoint.trainer_type import CheckpointedTrainer

SHARDED = "SHARDED_STATE_DICT"
FULL = "FULL_STATE_DICT"


def state_dict_type(trainer: CheckpointedTrainer) -> str | None:
    """accelerate's `fsdp_state_dict_type`, such as FULL_STATE_DICT; None without FSDP."""
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    name: str | None = plugin.state_dict_type.name if plugin else None
    return name


def is_sharded(trainer: CheckpointedTrainer) -> bool:
    """Whether each rank saves its own part of the states. transformers then writes no model that others can load."""
    return state_dict_type(trainer) == SHARDED


def taking_shards(save: Save, trainer: CheckpointedTrainer) -> AbstractContextManager[None]:
    """While this is open, the save takes sharded states, where the launch has any."""
    if not is_sharded(trainer):
        return nullcontext()
    from train.checkpoint.sharded_save import intercepting_dcp_save

    return intercepting_dcp_save(save, trainer)


def save_model(trainer: CheckpointedTrainer, output_dir: str | None, *, in_checkpoint: bool) -> None:
    """Write what transformers writes of the model with whole states: its config, tokenizer, and weights or adapters.

    A checkpoint has the weights of a whole model in shards, and only there. Every rank must call it.
    """
    trainer._save(output_dir, _gather(trainer, in_checkpoint))
    if trainer.args.push_to_hub and not in_checkpoint:
        trainer.push_to_hub(commit_message="Model save", revision=trainer.args.hub_revision)


def _gather(trainer: CheckpointedTrainer, in_checkpoint: bool) -> dict[str, Any]:
    """The weights to write, or all that is trained beside a frozen model: on rank 0, on the CPU."""
    from accelerate.utils import is_peft_model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    adapters = is_peft_model(trainer.model)
    if in_checkpoint and not adapters:
        return {}
    states = get_model_state_dict(trainer.model, options=StateDictOptions(ignore_frozen_params=adapters))
    return gather(states, keep_for(states, Path(str(trainer.args.output_dir))) if is_first() else None)
