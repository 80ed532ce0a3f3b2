"""Operations and memory that training needs, from a model's shape: what measured figures are compared with.

**Operations.** `needed_operations` is the formula of `train.loop.throughput`: 6 operations a weight and real token (4
for frozen weights, which have no gradient), embeddings aside, the head on trained tokens only, and 12 x layers x heads
x head_dim for each attended pair of a document. `usual_operations` is the 6N that papers use: 6 x N x tokens (4 for
LoRA), where N is every matrix but the input embedding, and the head counts on every real token; attention is left out.
Neither counts what checkpointing computes again, nor padding.

**Memory** (`estimated_bytes`), at the beginning of a backward pass:

    weights       4 bytes each (LoRA: 2 of the base model, 4 of adapters)
    optimizer     8 bytes a trained weight
    gradients     4 bytes a trained weight, where a step takes several forward passes
    activations   layers x what one layer keeps for its backward pass (counted with fake tensors, copies of weights in
                  bf16 among them); with checkpointing layers x the residual stream, and one layer in full
    head          a tile of logits (4,096 x 32,768 in bf16), and the weight's gradient in fp32 where it is trained
"""

from __future__ import annotations

from typing import Any
from unittest import mock

LORA_RANK = 16
TILE = 4096 * 32768 * 2  # bytes; of trl.kernels.chunked_logprob


def layer_weights(shape: dict[str, Any]) -> int:
    """Elements of one layer's matrices."""
    width, dim = shape["hidden_size"], shape["head_dim"]
    heads, kv = shape["num_attention_heads"], shape["num_key_value_heads"]
    return width * dim * (2 * heads + 2 * kv) + 3 * width * shape["intermediate_size"]


def head_weights(shape: dict[str, Any]) -> int:
    """Elements of the output head, and of the input embedding."""
    return shape["vocab_size"] * shape["hidden_size"]


def adapter_weights(shape: dict[str, Any]) -> int:
    """Elements of LoRA's matrices on every linear layer but the head."""
    width, dim, inner = shape["hidden_size"], shape["head_dim"], shape["intermediate_size"]
    heads, kv = shape["num_attention_heads"] * dim, shape["num_key_value_heads"] * dim
    sides = 2 * (width + heads) + 2 * (width + kv) + 3 * (width + inner)  # q and o, k and v, gate, up and down
    return shape["num_hidden_layers"] * LORA_RANK * sides


def needed_operations(shape: dict[str, Any], tokens: int, trained: int, pairs: float, *, lora: bool) -> float:
    """Floating-point operations of forward and backward that the mathematics needs.

    Args:
        tokens: real ones, without padding.
        trained: those with a label.
        pairs: of a token and one that it attends to, itself included, within documents.
    """
    adapters = adapter_weights(shape) * 6 * tokens if lora else 0
    factor, layers = 4 if lora else 6, shape["num_hidden_layers"]
    weights = factor * (layers * layer_weights(shape) * tokens + head_weights(shape) * trained)
    return weights + adapters + 12 * layers * shape["num_attention_heads"] * shape["head_dim"] * pairs


def usual_operations(shape: dict[str, Any], tokens: int, *, lora: bool) -> int:
    """6N a token (4N for LoRA)."""
    weights = shape["num_hidden_layers"] * layer_weights(shape) + head_weights(shape)
    return (4 if lora else 6) * weights * tokens


def estimated_bytes(shape: dict[str, Any], tokens: int, *, lora: bool, checkpointing: bool, passes: int) -> int:
    """Peak memory of a training step on one GPU.

    Args:
        tokens: of one forward pass.
        passes: forward passes of an optimizer step.
    """
    layers, head = shape["num_hidden_layers"], head_weights(shape)
    base = layers * layer_weights(shape) + head * (1 if shape.get("tie_word_embeddings") else 2)
    trained = adapter_weights(shape) if lora else base
    weights = 2 * base + 4 * trained if lora else 4 * base
    layer, stream = kept_by_a_layer(shape, tokens, lora=lora)
    activations = layers * stream + layer if checkpointing else layers * layer
    gradients = 4 * trained if passes > 1 else 0
    return weights + 8 * trained + gradients + activations + TILE + (0 if lora else 4 * head)


def kept_by_a_layer(shape: dict[str, Any], tokens: int, *, lora: bool) -> tuple[int, int]:
    """Bytes that one layer keeps for its backward pass, and those of the residual stream that goes into it.

    A model of two layers and one of one are run on fake tensors, which have sizes and no contents; the difference is a
    layer's.
    """
    (one, stream), (two, _) = (_kept({**shape, "num_hidden_layers": n}, tokens, lora) for n in (1, 2))
    return two - one, stream


def _kept(shape: dict[str, Any], tokens: int, lora: bool) -> tuple[int, int]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from train.model import varlen

    model = model_without_storage(shape, lora)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(varlen, "_has_kernel", lambda query: True),
        mock.patch("transformers.masking_utils.find_packed_sequence_indices", lambda *args, **kwargs: None),
    ):
        give_fake_weights(model)
        given = {"input_ids": torch.zeros(1, tokens, dtype=torch.long), "use_cache": False}
        given |= {"position_ids": torch.zeros(1, tokens, dtype=torch.long), "max_length_q": tokens}
        given["cu_seq_lens_q"] = torch.zeros(9, dtype=torch.int32)
        return _storages_kept(model.train(), given)


def give_fake_weights(model: Any) -> None:
    """Under FakeTensorMode: weights and buffers on the meta device become fake ones of a CPU."""
    import torch

    for module in model.modules():
        for tensors, kind in ((module._parameters, torch.nn.Parameter), (module._buffers, lambda t, _: t)):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = kind(torch.empty_like(tensor, device="cpu"), tensor.requires_grad)


def model_without_storage(shape: dict[str, Any], lora: bool) -> Any:
    """On the meta device, with `varlen` attention; with adapters on every linear layer, the model below them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen3Config

    from train.model import varlen

    varlen.register()
    config = Qwen3Config(**{**shape, "vocab_size": 1000, "pad_token_id": None})
    dtype = torch.bfloat16 if lora else torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=varlen.NAME, dtype=dtype)
        if not lora:
            return model
        adapters = LoraConfig(r=LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, adapters)
    model.enable_input_require_grads()
    return model.get_base_model()


def _storages_kept(model: Any, given: dict[str, Any]) -> tuple[int, int]:
    import torch

    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        out = model.model(**given).last_hidden_state
    return sum(storage.nbytes() for storage in kept.values()), out.numel() * out.element_size()
