"""Where a model that answers comes from: an export, an adapter, a run or a checkpoint, or the hub."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from train.serving.adapters import ADAPTER_CONFIG, check_exported, find_base, load_adapter
from train.serving.chat_model import SAMPLING_ONLY, ChatModel
from train.serving.export_source import Exported, find_exported, find_shards, read_json

_NONE = "no model that can be loaded, in a folder or on the hub"
_OF_RUNS = ("complete.json", "trainer_state.json", "run.json", "latest")


@dataclass(frozen=True)
class Loading:
    """How weights are loaded.

    Args:
        dtype: as transformers names it; auto: that of the files.
        load_in_4bit: quantise the linear layers to 4 bits (nf4) with bitsandbytes.
    """

    dtype: str = "auto"
    load_in_4bit: bool = False

    def check(self) -> None:
        """Refuse what this environment cannot load.

        Raises:
            ValueError: bitsandbytes is not installed.
        """
        if self.load_in_4bit and find_spec("bitsandbytes") is None:
            raise ValueError("--load_in_4bit needs bitsandbytes: pip install bitsandbytes, or leave the option out")

    def arguments(self) -> dict[str, Any]:
        """Of `from_pretrained`."""
        import torch

        on_gpu = {"device_map": "auto"} if torch.cuda.is_available() else {}
        if not self.load_in_4bit:
            return {"dtype": self.dtype, **on_gpu}
        from transformers import BitsAndBytesConfig

        # Products are computed in the dtype that is asked for; bitsandbytes alone would take float32.
        compute = torch.bfloat16 if self.dtype == "auto" else getattr(torch, self.dtype)
        how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
        return {"dtype": self.dtype, "quantization_config": how, **on_gpu}


def is_run(folder: Path) -> bool:
    """Whether it is the folder of a run, or a checkpoint of one."""
    return any((folder / sign).exists() for sign in _OF_RUNS) or any(folder.glob("checkpoint-*"))


def check_folder(path: str, *, runs: bool = False) -> None:
    """Refuse what is plainly no model, before anything heavy is loaded.

    Args:
        runs: whether a run or a checkpoint that was not exported will do.

    Raises:
        ValueError: no such folder, a file, a folder without a model, or a run or checkpoint where it will not do.
    """
    folder = Path(path)
    if not folder.exists():
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and not path.startswith("."):
            return  # perhaps an id on the hub
        raise ValueError(f"{path}: expected the folder of an exported model or an id on the hub, found no such folder")
    if not folder.is_dir():
        raise ValueError(f"{path}: expected the folder of an exported model, found a file")
    if is_run(folder):
        if not runs:
            raise ValueError(f"{path} is a run or a checkpoint, not an export: {_how_to_export(path)}")
        _find_weights(path)
    elif not any((folder / name).exists() for name in ("config.json", ADAPTER_CONFIG)):
        raise ValueError(f"{path}: expected the folder of an exported model (config.json), found none in it")


def check_sampling(path: str, overrides: dict[str, Any]) -> None:
    """Refuse a sampling option that would do nothing, as far as files on this machine say, before anything is loaded.

    Raises:
        ValueError: such as a temperature for a model that does not sample by default.
    """
    idle = [name for name in SAMPLING_ONLY if name in overrides]
    folder = _find_weights(path).checkpoint.path if is_run(Path(path)) else Path(path)
    file = folder / "generation_config.json"
    if not idle or not file.exists():  # an adapter's is that of its base model, which is not looked for here
        return
    own = read_json(file)
    if not overrides.get("do_sample", own.get("do_sample")):
        raise ValueError(f"--{idle[0]} does nothing: {path} does not sample by default; add --do_sample")


@dataclass(frozen=True)
class Asking:
    """How a model is asked: without its weights."""

    tokenizer: Any
    generation: Any = None  # its own generation config; None: the base model's, which comes with the weights
    ends: list[int] = field(default_factory=list)  # ids that end an answer; empty: as the generation config has them

    def put_ends(self, config: Any) -> None:
        """Make a generation config stop where answers end."""
        config.eos_token_id = self.ends or self.generation.eos_token_id
        pad = self.tokenizer.pad_token_id
        config.pad_token_id = config.eos_token_id[-1] if pad is None and self.ends else pad


def read_asking(path: str) -> Asking:
    """Tokenizer, chat template and ends of answers of a model; see `load`.

    Raises:
        ValueError: there is no tokenizer.
    """
    from transformers import AutoTokenizer, GenerationConfig

    if is_run(Path(path)):
        return _asking_of_run(_find_weights(path))
    try:
        tokenizer = AutoTokenizer.from_pretrained(_tokenizer_of(path))
        has_own = (Path(path) / "generation_config.json").exists()
        return Asking(tokenizer, GenerationConfig.from_pretrained(path) if has_own else None)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {_NONE}. Found: {error}") from None


def load(path: str, loading: Loading | None = None) -> ChatModel:
    """Load a model from a folder or the hub, on the GPUs if there are any.

    Args:
        path: an export, an adapter (its base model is found by its adapter_config.json), a run or a checkpoint.
        loading: None: in its own dtype.

    Raises:
        ValueError: it cannot be loaded, or is an adapter of another base model than the one that is there.
    """
    arguments = (loading or Loading()).arguments()
    if is_run(Path(path)):
        return _load_run(path, arguments)
    from transformers import AutoModelForCausalLM

    check_exported(Path(path))
    asking = read_asking(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, **arguments)
    except (ImportError, OSError, ValueError) as error:  # ImportError: bitsandbytes
        raise ValueError(f"{path}: {_NONE}. Found: {error}") from None
    if asking.generation:  # of an adapter, the base's would be taken
        model.generation_config = asking.generation
    return ChatModel(path, model.eval(), asking.tokenizer)


def borrow_template(base: ChatModel, lender: str, asking: Asking) -> None:
    """Let a model without a chat template be asked through another one's tokenizer.

    Args:
        lender: name of the other model, which the base one became by training.

    Raises:
        ValueError: the base model has fewer embeddings than the tokenizer has tokens.
    """
    rows = base.model.get_input_embeddings().weight.shape[0]
    if rows < len(asking.tokenizer):
        raise ValueError(
            f"{base.name} has no chat template of its own, and only {rows} embeddings for the "
            f"{len(asking.tokenizer)} tokens of {lender}: give the base model that was tuned"
        )
    base.tokenizer = asking.tokenizer
    if asking.ends or asking.generation:
        asking.put_ends(base.model.generation_config)


def _find_weights(path: str, said: TextIO | None = None) -> Exported:
    """The checkpoint or final model that a run or checkpoint stands for, with weights that load as they are.

    Args:
        said: takes the lines about which one was chosen; None: nobody.

    Raises:
        ValueError: nothing complete, or weights in parts of ZeRO-3 or FSDP2, which only an export puts together.
    """
    with contextlib.redirect_stdout(said or io.StringIO()):  # standard output is for answers
        found = find_exported(Path(path), best=False)
    folder = found.checkpoint.path
    if not list(folder.glob("model*.safetensors")) and not (folder / ADAPTER_CONFIG).exists():
        raise ValueError(f"{path} holds the weights in parts, one for each process: {_how_to_export(path)}")
    return found


def _load_run(path: str, arguments: dict[str, Any]) -> ChatModel:
    from transformers import AutoModelForCausalLM

    found = _find_weights(path, sys.stderr)
    folder, asking = found.checkpoint.path, _asking_of_run(found)
    base = find_base(found.checkpoint, found.run, None)
    try:
        if base:
            model: Any = load_adapter(folder, base, arguments=arguments)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, **arguments)
    except (ImportError, OSError) as error:
        raise ValueError(f"{path}: {found.name} cannot be loaded. Found: {error}") from None
    asking.put_ends(model.generation_config)  # a checkpoint's may be the base model's
    print(f"{path}: {found.name} (step {found.checkpoint.step}), as it was trained and not exported", file=sys.stderr)
    return ChatModel(path, model.eval(), asking.tokenizer)


def _asking_of_run(found: Exported) -> Asking:
    """As an export would be asked: through the tokenizer of the shards, or else the checkpoint's copy."""
    from transformers import AutoTokenizer

    from train.serving.export_tokenizer import end_token_ids

    with contextlib.redirect_stdout(sys.stderr):
        shards, _ = find_shards(found, None)
    folder = shards.tokenizer if shards else found.checkpoint.path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answer_ends = (shards.end_token_ids if shards else []) or end_token_ids(folder)
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return Asking(tokenizer, ends=list(dict.fromkeys([*answer_ends, *own])))


def _tokenizer_of(path: str) -> str:
    """Where the tokenizer is: an adapter's folder may have none of its own."""
    config = Path(path) / ADAPTER_CONFIG
    if not config.exists() or (Path(path) / "tokenizer_config.json").exists():
        return path
    return str(read_json(config).get("base_model_name_or_path") or path)


def _how_to_export(path: str) -> str:
    return f"run\n  packhaul export --checkpoint {path} --output DIR\nand give DIR"
