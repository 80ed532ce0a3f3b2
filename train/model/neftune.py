"""NEFTune on packed rows: the noise of each document is scaled by that document's own length.

NEFTune (Jain et al., 2023) adds uniform noise of magnitude alpha / sqrt(length x width) to the embeddings. transformers
takes the row for the length, so that a row of 16 packed documents would get a quarter of the noise that each was meant
to have.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations.neftune import deactivate_neftune

from train.model.sequence_parallel import Part, part_of


def make_callback(trainer: Any) -> TrainerCallback:
    """A callback that puts the noise of `neftune_noise_alpha`, if it is set, on documents instead of rows."""

    class ScaleNoiseByDocument(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if trainer.neftune_noise_alpha is not None:
                deactivate_neftune(trainer.model, trainer.neftune_hook_handle, trainer.accelerator)
                model = trainer.accelerator.unwrap_model(trainer.model)
                trainer.neftune_hook_handle = add_noise(model, trainer.neftune_noise_alpha)

    return ScaleNoiseByDocument()


def add_noise(model: Any, alpha: float) -> Any:
    """Add noise to the embeddings of each forward pass in training.

    Args:
        model: called with `cu_seq_lens_q`, (documents + 1,), where the documents of a row begin and end, and with
            `sp_group` where it gets a part of the row.

    Returns:
        The handle that removes it.
    """
    ends: list[torch.Tensor] = []
    parts = [Part()]

    def remember_ends(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ends[:] = [kwargs["cu_seq_lens_q"]] if kwargs.get("cu_seq_lens_q") is not None else []
        parts[:] = [part_of(kwargs.get("sp_group"))]

    def with_noise(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        if not ends:
            raise ValueError("NEFTune: expected cu_seq_lens_q, which says where documents end, found none")
        return output + noise(output, ends[0], alpha, parts[0])

    model.register_forward_pre_hook(remember_ends, with_kwargs=True)
    return model.get_input_embeddings().register_forward_hook(with_noise)


def noise(embeddings: torch.Tensor, ends: torch.Tensor, alpha: float, part: Part) -> torch.Tensor:
    """Uniform noise for the embeddings, (1, tokens, width), of a part of a row whose documents end at `ends`."""
    lengths = ends.diff()
    magnitudes = alpha / (lengths * embeddings.shape[-1]).sqrt()
    of_token = torch.repeat_interleave(magnitudes, lengths, output_size=embeddings.shape[1] * part.size)
    return torch.empty_like(embeddings).uniform_(-1, 1) * part.of(of_token[None])[..., None].to(embeddings.dtype)
