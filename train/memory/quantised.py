"""Linear layers that take the memory of bitsandbytes' quantised ones: packed weights, unpacked for each product."""

from __future__ import annotations

from typing import Any

import torch

_BLOCK, _NESTED_BLOCK = 64, 256  # weights of a constant, and constants of one of theirs (bitsandbytes' quantize_4bit)


class QuantisedLinear(torch.nn.Linear):
    """A frozen layer with a packed weight; for models on the meta device.

    In 4 bits: half a byte a weight, and a constant for each 64 (`bitsandbytes.functional.quantize_4bit`): 4 bytes, or 1
    byte and 4 for each 256 of them where they are quantised as well. In 8 bits: a byte a weight and 4 for each row
    (`bitsandbytes.nn.Int8Params`).
    """

    def __init__(self, layer: torch.nn.Linear, bits: int, nested: bool):
        super().__init__(1, 1, bias=False, device="meta")
        self.in_features, self.out_features, self.bits = layer.in_features, layer.out_features, bits
        size = packed_bytes(layer.weight.shape[0], layer.weight.shape[1], bits, nested)
        self.weight = torch.nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.bias = layer.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        out: torch.Tensor = _Unpacked.apply(input, (self.out_features, self.in_features), self.bits)
        return out if self.bias is None else out + self.bias


def packed_bytes(rows: int, columns: int, bits: int, nested: bool) -> int:
    """Of a weight with its constants."""
    if bits == 8:
        return rows * columns + 4 * rows
    constants = -(-rows * columns // _BLOCK)
    size = constants + 4 * -(-constants // _NESTED_BLOCK) if nested else 4 * constants
    return -(-rows * columns // 2) + size


def quantise(model: Any, bits: int, nested: bool) -> None:
    """Put such layers in the place of all linear ones but the head, as transformers does."""
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is torch.nn.Linear and layer is not head:
                setattr(module, name, QuantisedLinear(layer, bits, nested))


class _Unpacked(torch.autograd.Function):
    """A product with a weight that is unpacked for it, in both passes (`bitsandbytes.autograd._functions.MatMul4Bit`).
    In 8 bits the forward pass multiplies whole numbers (`MatMul8bitLt`)."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, shape: tuple[int, int], bits: int) -> torch.Tensor:
        ctx.shape = shape
        if bits == 4:
            return torch.nn.functional.linear(input, input.new_empty(shape))
        packed = input.to(torch.int8)
        product = torch.empty((*packed.shape[:-1], shape[0]), dtype=torch.int32, device=input.device)
        return product.to(input.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ gradient.new_empty(ctx.shape), None, None
