"""Shared fixtures: a tokenizer trained here, tiny models with fixed seeds, and the optional folder of real data.

Everything is made in seconds from nothing but this file: no network, no GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.compiled_operators import compile_once
from tests.support.passed_over import pytest_collection, pytest_runtest_teardown  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the hub fails at once instead of waiting
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny: threads of several processes only wait for each other
compile_once()  # before torch is imported
# Python compiles the project's modules once, and not in each of the processes that are started.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# DeepSpeed compiles with the ninja it finds first, and compiles again when that is another one than the last time.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# Examples may take long where other work runs beside the tests, and a fixture is made once for all of them.
LOADED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("packhaul", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("packhaul")

ROOT = Path(__file__).resolve().parent.parent
VOCAB_SIZE = 640
SPECIAL_TOKENS = ["<pad>", "<bos>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "Repeat the word after me and tell me why the sky is blue.",
    "What is the capital of France? The capital of France is Paris.",
    "You are a helpful assistant. Answer the question in one short sentence.",
    "Write the letters of the word in reverse order, then count them.",
    "제1형 당뇨병은 어떻게 치료하나요? 인슐린을 꾸준히 맞아야 합니다.",
    "감기약 종류 좀 알려주세요. 해열제와 진통제가 있습니다.",
    "사과는 왜 빨간가요? 안토시아닌이라는 색소가 있기 때문입니다.",
    "저는 사과 12개가 있었는데, 친구에게 절반을 나눠줬어요. 남은 사과는 여섯 개입니다.",
    "system\nuser\nassistant\n",
]
CHATML = (
    "{%- for message in messages %}\n"
    "{{- '<|im_start|>' + message.role + '\\n' }}\n"
    "{%- if message.role == 'assistant' %}\n"
    "{%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}\n"
    "{{- '\\n' }}\n"
    "{%- else %}\n"
    "{{- message.content + '<|im_end|>\\n' }}\n"
    "{%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


# What waits most comes first, then folders with long files, so that no worker is left with one at the end.
LONGEST_FIRST = ("cluster", "system/test_gpu_rehearsal", "system", "data_prep/tokenization", "slurm", "test_", "train")


# More than 20 CPU seconds, all of a file together. In other files, functions of more than 7 carry the marker.
SLOW = (
    *("slurm/test_requeue", "slurm/test_templates", "test_shipped_configs", "test_wheel", "data_prep/test_case_files"),
    *("train/loop/test_wandb_run", "train/loop/test_end_of_run", "train/serving/test_export_weights"),
    *("train/serving/test_older_readers", "train/model/test_repacked_weights", "train/run/test_watchdog"),
    *("train/run/test_hang_watch", "train/checkpoint/test_saving"),
    *("train/checkpoint/test_resumed_options", "train/checks/test_unused_packages", "train/serving/test_chat_model"),
    *("train/node_check/test_gpus", "train/test_check_nodes", "train/serving/test_export_tokenizer"),
    *("data_prep/tokenization/test_saved_tokenizer", "train/model/test_sequence_parallel"),
    *("data_prep/tokenization/test_fastokens_encoder", "train/memory/test_estimate"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder, and begin with what takes longest."""
    for item in items:
        folder = item.path.parent.relative_to(ROOT / "tests").as_posix()
        if folder == "cluster":
            item.add_marker(pytest.mark.cluster)
        if folder == "system":
            item.add_marker(pytest.mark.launch)
        if item.path.relative_to(ROOT / "tests").with_suffix("").as_posix() in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=_rank)  # stable: within a rank as collected


def _rank(item: pytest.Item) -> int:
    place = item.path.relative_to(ROOT / "tests").as_posix()
    return next((i for i, start in enumerate(LONGEST_FIRST) if place.startswith(start)), len(LONGEST_FIRST))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Copies of inputs go neither into the user's cache nor from one run of the tests to the next."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PACKHAUL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def encoders_proven_once():
    """See tests/support/proven_encoders.py; the tests of the proof make it each time."""
    from tests.support import proven_encoders

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(proven_encoders.fastokens_encoder, "build", proven_encoders.build_proven)
        yield


@pytest.fixture(scope="session", autouse=True)
def estimate_of_a_run():
    """A run in a test's process does not estimate its memory, which takes half a second; yields what does."""
    from train.memory import after_run

    with pytest.MonkeyPatch.context() as patched:
        estimated = after_run.estimated
        patched.setattr(after_run, "estimated", lambda *_: {})
        yield estimated


@pytest.fixture(autouse=True)
def environment_as_before():
    """What a test, or a run inside its process, sets in the environment ends with it: the next one must not inherit a
    W&B run or an offline mode."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def worlds():
    """Worlds of several training processes, without the imports of a launch."""
    from tests.support.worlds import Worlds

    made = Worlds()
    yield made
    made.close()


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    """The tokenizer of `build_tiny_tokenizer`; `name_or_path` is its folder."""
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def build_tiny_tokenizer(folder: Path):
    """PreTrainedTokenizerFast: byte-level BPE of at most VOCAB_SIZE tokens (English and Korean, any text encodes),
    eos `<|im_end|>`, pad `<pad>`, bos `<bos>` (not added by itself), ChatML with generation marks as chat template.
    Saved in the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>", bos_token="<bos>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_tokenizer, tmp_path_factory) -> Callable[..., Path]:
    """Factory: `tiny_model_dir(architecture, **config_overrides)` -> folder with a random model (hidden 32, 2 layers,
    fp32, seed 0, the `tiny_tokenizer` vocabulary) and the tokenizer; for the architectures see `_tiny_config`. Same
    arguments, same folder: do not write into it."""
    made: dict[str, Path] = {}

    def make(architecture: str, **overrides) -> Path:
        key = repr((architecture, sorted(overrides.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(architecture)
            save_tiny_model(architecture, tiny_tokenizer, made[key], overrides)
        return made[key]

    return make


_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_DELTA = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
# Models with a state in some layers; by type, what makes them tiny.
HYBRIDS: dict[str, dict] = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"], **_DELTA},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"], **_DELTA, **_EXPERTS},
    "mamba2": {"num_heads": 8, "expand": 2, "n_groups": 1, "state_size": 8},
    "bamba": {"attn_layer_indices": [1], **_MAMBA},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1, "mamba_d_state": 8},
    "falcon_h1": {"mamba_d_ssm": 64, **_MAMBA},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"], **_DELTA},
}


def save_tiny_model(architecture: str, tokenizer, folder: Path, overrides: dict) -> None:
    """The random model of `tiny_model_dir`, and the tokenizer, in a folder."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(_tiny_config(architecture, tokenizer, overrides))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tiny_config(architecture: str, tokenizer, overrides: dict):
    from transformers import (
        AutoConfig,
        Gemma2Config,
        Gemma3TextConfig,
        LlamaConfig,
        MistralConfig,
        Qwen3Config,
        Qwen3MoeConfig,
    )

    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    extra = {
        "llama": {},
        "qwen3": {"tie_word_embeddings": True},
        # One sliding and one full layer, with a window short enough for tests to cross.
        "gemma3": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
        "gemma2": {"sliding_window": 16, "attn_logit_softcapping": 50.0},
        "mistral": {"sliding_window": 16},
        "qwen3_moe": {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "router_aux_loss_coef": 0.0,
        },
    }
    extra |= {**HYBRIDS, "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}}
    if architecture not in extra:
        raise ValueError(f"tiny_model_dir: unknown architecture {architecture!r}; known: {sorted(extra)}")
    classes = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig, "gemma2": Gemma2Config}
    classes |= {"mistral": MistralConfig, "qwen3_moe": Qwen3MoeConfig}
    classes |= {name: type(AutoConfig.for_model(name)) for name in (*HYBRIDS, "gpt_oss") if name == architecture}
    return classes[architecture](**{**sizes, **extra[architecture], **overrides})


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data and tokenizers: $PACKHAUL_TEST_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("PACKHAUL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}: set PACKHAUL_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture
def tiny_shards(tmp_path, tiny_tokenizer) -> Path:
    """As much of a shard directory as export reads: the tokenizer, and a sentence of CORPUS in each document."""
    import numpy as np

    from data_prep.shards import write_shard

    folder = tmp_path / "shards"
    shutil.copytree(tiny_tokenizer.name_or_path, folder / "tokenizer")
    documents = [np.array(tiny_tokenizer(text)["input_ids"], dtype=np.int32) for text in CORPUS]
    lengths = np.array([len(document) for document in documents], dtype=np.int32)
    ids = np.concatenate(documents)
    row = {"input_ids": ids, "labels": ids, "seq_lengths": lengths, "sources": np.arange(len(lengths), dtype=np.int32)}
    shard = {"file": "eval/00000.arrow", **write_shard(folder / "eval" / "00000.arrow", [row])}
    splits = {"train": {"rows": 0, "shards": []}, "eval": {"rows": 1, "shards": [shard]}}
    manifest = {"format_version": 1, "end_token_ids": [3], "bos_token_id": None, "splits": splits}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def tiny_run(tmp_path, tiny_shards) -> Path:
    """A run directory that names its shards and has no checkpoint yet."""
    folder = tmp_path / "run"
    folder.mkdir()
    record = {
        "data": str(tiny_shards),
        "manifest_sha256": hashlib.sha256((tiny_shards / "manifest.json").read_bytes()).hexdigest(),
        "model_name_or_path": str(tmp_path / "base"),
        "git_commit": "0123abc",
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder
