"""What the memory of a training step depends on, besides the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
HALF = {"bf16": "bfloat16", "fp16": "float16"}  # of a precision


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How the processes share weights, gradients and optimizer states."""

    kind: str  # "none", "ddp", "zero" or "fsdp2"
    processes: int = 1
    zero: Mapping[str, Any] = field(default_factory=dict)  # DeepSpeed's section zero_optimization
    replicas: int = 1  # groups of processes that each hold the whole, in parts (FSDP2's HSDP)

    @property
    def stage(self) -> int:
        """Of ZeRO; 0 where DeepSpeed shards nothing."""
        return int(self.zero.get("stage", 0)) if self.kind == "zero" else 0

    def offload(self, what: str) -> str | None:
        """Where DeepSpeed keeps "optimizer" or "param" instead of on the GPU: "cpu", "nvme" or None."""
        device = (self.zero.get(f"offload_{what}") or {}).get("device")
        return device if device in ("cpu", "nvme") else None

    def __str__(self) -> str:
        if self.kind != "zero":
            groups = f" in {self.replicas} replicas" if self.replicas > 1 else ""
            return {"none": "one process", "ddp": "DDP", "fsdp2": f"FSDP2{groups}"}[self.kind]
        places = [f"{what} on {self.offload(what)}" for what in ("optimizer", "param") if self.offload(what)]
        return f"ZeRO-{self.stage}{' with ' + ', '.join(places) if places else ''}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One rank's training step."""

    rows: int  # packed rows of a forward pass: per_device_train_batch_size
    seq_len: int  # most tokens of a row
    row_ranks: int = 1  # ranks that hold a row in parts: sequence_parallel
    accumulation: int = 1
    dtype: str = "float32"  # of the weights as loaded: "float32", "bfloat16" or "float16"
    file_dtype: str | None = None  # of the weights in the model's files, where it is known
    precision: str = "bf16"  # "bf16", "fp16" or "no"
    sharding: Sharding = Sharding(kind="none")
    optim: str = "adamw_torch_fused"
    checkpointing: bool = False
    activation_offloading: bool = False
    adapters: LoraConfig | None = None
    bits: int | None = None  # 4 or 8: of the base model's quantised weights
    nested: bool = False  # the constants of 4-bit weights are quantised as well
    liger: bool = False
    copies: bool = False  # bf16_copies
    keep_logits_gib: float = 0.0
    compiled: bool = False
    on_gpu: bool = True
    attention: str = "varlen"
    document_tokens: float = 512.0  # of a document, in the mean; matters where one is taken after the other

    @property
    def tokens(self) -> int:
        """Of a forward pass on this rank, at most."""
        return -(-self.rows * self.seq_len // self.row_ranks)

    @property
    def documents(self) -> int:
        """Of a forward pass, in the mean: attention on a CPU and layers that carry a state take each by itself."""
        return max(1, round(self.tokens / self.document_tokens))

    @property
    def autocast(self) -> str | None:
        """The dtype that autocast multiplies in; None without autocast. Under DeepSpeed accelerate uses none
        (`accelerate.Accelerator.__init__`): the weights themselves are in half precision."""
        return None if self.sharding.kind == "zero" or self.copies else HALF.get(self.precision)

    @property
    def model_dtype(self) -> str:
        """Of the weights in layers. DeepSpeed casts them (`DeepSpeedEngine._configure_distributed_model`),
        FSDP2 gathers them in the dtype of its mixed precision."""
        casts = self.sharding.kind in ("zero", "fsdp2") or self.copies
        if self.sharding.kind == "zero" and self.precision == "no":
            return "float32"
        return HALF.get(self.precision, self.dtype) if casts else self.dtype

    @property
    def keeps_files(self) -> bool:
        """Whether the model's files stay in memory whole. On a CPU a weight that is loaded in the dtype of its file is
        a view of that file (`safetensors.safe_open`), so that weights which were packed stay there as well, as long as
        the embeddings and norms next to them live. A GPU gets copies, and so does a CPU in another dtype."""
        is_whole = self.sharding.kind in ("none", "ddp")
        return bool(self.bits) and not self.on_gpu and is_whole and self.dtype == self.file_dtype

    @property
    def keeps_gradients(self) -> bool:
        """Whether the gradients grow in `.grad` while a backward pass runs, rather than being there before, or handed
        on as they are made."""
        in_place = self.sharding.kind in ("none", "ddp") or self.sharding.stage == 1
        return in_place and self.accumulation == 1 and not self.copies
