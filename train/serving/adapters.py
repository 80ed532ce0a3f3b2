"""A LoRA adapter over the base model that it was trained on: loaded, merged into that one, or kept as it is."""

from __future__ import annotations

import gc
import json
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.checkpoint.folders import Checkpoint
from train.run.atomic_files import write_json_atomically
from train.run.model_identity import QUANTISATION, difference, model_digests

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MERGED = "LoRA adapter merged into its base model"
KEPT = "LoRA adapter, to be loaded over its base model"
Score = Callable[[Any], None]


@dataclass(frozen=True)
class Base:
    """The model that an adapter belongs to."""

    path: str  # a folder or an id on the hub
    revision: str | None = None  # of an id
    digests: dict[str, str] | None = None  # of train.run.model_identity, as the run recorded them; None: it did not
    quantisation: dict[str, Any] = field(default_factory=dict)  # arguments of BitsAndBytesConfig; empty: none

    @property
    def load_arguments(self) -> dict[str, Any]:
        """What `from_pretrained` needs to load it as it was trained on, in the dtype of its files."""
        more: dict[str, Any] = {"revision": self.revision} if self.revision else {}
        if self.quantisation:
            from transformers import AutoConfig, BitsAndBytesConfig

            dtype = AutoConfig.from_pretrained(self.path, **more).dtype
            compute = {"bnb_4bit_compute_dtype": dtype} if self.quantisation.get("load_in_4bit") else {}
            more["quantization_config"] = BitsAndBytesConfig(**self.quantisation, **compute)
        return {"dtype": "auto", **more}


def find_base(checkpoint: Checkpoint, run: dict[str, Any], given: str | None) -> Base | None:
    """The base model of a checkpoint's adapter, or None where it holds a whole model.

    Args:
        run: run.json, empty when there is none.
        given: where the base model is now; None: where adapter_config.json says.

    Raises:
        ValueError: the adapter's weights are not there, nothing names a base model, or there is another one.
    """
    path = checkpoint.path / ADAPTER_CONFIG
    if not path.exists():
        return None
    if not (checkpoint.path / ADAPTER_WEIGHTS).exists():
        raise ValueError(f"{checkpoint.path}: expected {ADAPTER_WEIGHTS} next to {ADAPTER_CONFIG}, found none")
    named = given or json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not named:
        raise ValueError(f"{path} names no base model: say where it is with --base_model")
    options = run.get("options") or {}
    revision = None if given or Path(str(named)).is_dir() else options.get("model_revision")
    digests = checkpoint.extra.get("base_model") or run.get("base_model")
    base = Base(str(named), revision, digests, _quantisation(checkpoint, options))
    check_base(base)
    return base


def check_base(base: Base) -> None:
    """Refuse another model than the adapter was trained on, as far as that is known and the model is here.

    Raises:
        ValueError: it has other weights, or another configuration.
    """
    if other := difference(base.digests, model_digests(base.path, base.revision)):
        raise ValueError(
            f"{base.path} is not the base model that the adapter was trained on: it has {other}. Give that one: "
            "--base_model of packhaul export"
        )


def check_exported(folder: Path) -> None:
    """Refuse an exported adapter whose base model is another one by now.

    Raises:
        ValueError: see `check_base`.
    """
    if not (folder / ADAPTER_CONFIG).exists() or not (folder / "export.json").exists():
        return
    config, record = (json.loads((folder / name).read_text("utf-8")) for name in (ADAPTER_CONFIG, "export.json"))
    check_base(Base(config["base_model_name_or_path"], config.get("revision"), record.get("base_model")))


def _quantisation(checkpoint: Checkpoint, options: dict[str, Any]) -> dict[str, Any]:
    """How training has quantised the base model."""
    adapters, how = checkpoint.extra.get("adapters") or options, checkpoint.extra.get("quantisation") or options
    if adapters.get("load_in_8bit"):
        return {"load_in_8bit": True}
    if not adapters.get("load_in_4bit"):
        return {}
    kind, nested = (how.get(name) for name in QUANTISATION)
    return {"load_in_4bit": True, "bnb_4bit_quant_type": kind or "nf4", "bnb_4bit_use_double_quant": bool(nested)}


def merge_adapter(source: Path, folder: Path, base: Base, score: Score) -> str:
    """Write the base model with the adapter merged into it.

    Where training has quantised the base model, the adapter is merged into what that one's weights stand for: it was
    trained to go with them, not with the weights they were made of.

    Args:
        score: is called with the model as it was trained, before it is merged.
    """
    model = load_adapter(source, base)
    score(model)
    if base.quantisation:
        del model
        gc.collect()
        model = load_adapter(source, base, dequantised=True)
    merge(model).save_pretrained(folder)
    return MERGED


def keep_adapter(source: Path, folder: Path, base: Base, score: Score) -> str:
    """Copy the adapter; `score` is called with the model as it was trained."""
    score(load_adapter(source, base))  # refuses what is not whole
    shutil.copyfile(source / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    config = json.loads((source / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    place = {"base_model_name_or_path": base.path, "revision": base.revision}
    write_json_atomically(folder / ADAPTER_CONFIG, {**config, **place})
    if (Path(base.path) / "generation_config.json").exists():
        shutil.copyfile(Path(base.path) / "generation_config.json", folder / "generation_config.json")
    return KEPT


def merge(model: PeftModel) -> Any:
    """The base model with the adapter in its weights; refuses NaN."""
    untie_adapted(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")  # what peft warns of is done above
        tuner: Any = model
        return tuner.merge_and_unload(safe_merge=True)


def untie_adapted(model: PeftModel) -> None:
    """Give the head weights of its own where it shares those of embeddings that an adapter changes, or the other way
    round: in training the adapter changed one of the two."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    base: Any = model.get_base_model()
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    adapted: list[Any] = [part for part in (embeddings, head) if isinstance(part, BaseTunerLayer)]
    if not adapted or head is None:
        return
    inner, outer = (part.get_base_layer() if part in adapted else part for part in (embeddings, head))
    if inner.weight is outer.weight:
        outer.weight = torch.nn.Parameter(outer.weight.detach().clone(), requires_grad=False)


def load_adapter(
    source: Path, base: Base, *, dequantised: bool = False, arguments: dict[str, Any] | None = None
) -> PeftModel:
    """The adapter over its base model, in eval mode.

    Args:
        arguments: of `from_pretrained` for the base model, in the place of those of training.

    Raises:
        ValueError: the base model cannot be loaded or is another one, or the adapter lacks weights.
    """
    from peft import PeftModel, get_peft_model_state_dict

    model: Any = PeftModel.from_pretrained(_load_base(base, dequantised, arguments or {}), source)
    # peft loads a file that lacks some adapters with no more than a warning.
    expected = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    if missing := sorted(expected - tensor_shapes([source / ADAPTER_WEIGHTS]).keys()):
        raise ValueError(f"{source / ADAPTER_WEIGHTS} lacks {len(missing)} adapter weights, {missing[0]} the first")
    return model.eval()


def _load_base(base: Base, dequantised: bool, arguments: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(base.path, **{**base.load_arguments, **arguments})
    except (ImportError, OSError) as error:  # ImportError: bitsandbytes
        raise ValueError(
            f"the adapter's base model {base.path} cannot be loaded: say where it is now with --base_model. Found: "
            f"{error}"
        ) from None
    check_base(base)  # again: it may have been downloaded only now
    return model.dequantize(model.dtype) if dequantised else model


def tensor_shapes(files: Iterable[Path]) -> dict[str, tuple[list[int], str]]:
    """Name -> (shape, dtype as safetensors calls it), from the headers alone."""
    from safetensors import safe_open

    shapes = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (a safetensors handle, not a dict)
                part = file.get_slice(name)
                shapes[name] = (part.get_shape(), part.get_dtype())
    return shapes
