"""train.checks.untrained_rows: rows that adapters would leave untrained are found in a model's files."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.shards import read_manifest
from tests.support.in_process import as_a_fresh_process, train_here
from tests.support.training import make_shards, run_config
from train.checks.untrained_rows import check_rows, untrained_rows
from train.checks.weight_rows import find_matrices
from train.config.run_config import load_run_config
from train.preflight import examine
from train.sft import main

START, END = 2, 3  # the ids of <|im_start|> and <|im_end|>
SIZE, ROWS, WIDTH = 592, 704, 32  # of the tokenizer, of the matrices
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LORA = ["--use_peft", "--lora_target_modules", "q_proj"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tiny_tokenizer):
    return make_shards(tmp_path_factory.mktemp("rows"), tiny_tokenizer.name_or_path, {"short": [1] * 12})


def write_weights(folder, tensors, files: int = 1):
    """One file, or several with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        weight_map[name] = f"model-{number}.safetensors"
        save_file({name: tensor}, folder / weight_map[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def make_model(folder, *, tied=False, dtype=torch.float32, files=1, change=None):
    """Usual rows of norm about 1; those beyond the tokenizer lie together, as pre-training leaves them."""
    random = np.random.default_rng(0)
    middle = random.normal(size=WIDTH) / WIDTH**0.5
    matrices = {}
    for name in (EMBEDDINGS,) if tied else (EMBEDDINGS, HEAD):
        rows = random.normal(size=(ROWS, WIDTH)) / WIDTH**0.5
        rows[SIZE:] = middle + 0.02 * random.normal(size=(ROWS - SIZE, WIDTH)) / WIDTH**0.5
        if change:
            change(name, rows)
        matrices[name] = torch.tensor(rows, dtype=dtype)
    matrices["an.earlier.name.of.embed_tokens.weight"] = torch.zeros(4, WIDTH, dtype=dtype)  # another one's
    write_weights(folder, matrices, files)
    settings = {"vocab_size": ROWS, "tie_word_embeddings": tied, "model_type": "qwen3"}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def zeroed(name, rows):
    rows[END] = 1e-9


def alike(name, rows):
    rows[START] = rows[END]


def unused(name, rows):
    rows[END] = np.median(rows[SIZE:], axis=0) + 0.3 * (rows[650] - np.median(rows[SIZE:], axis=0))


def only_head(name, rows):
    if name == HEAD:
        rows[END] = 0


def only_embeddings(name, rows):
    if name == EMBEDDINGS:
        rows[[START, END]] = 0


def tuned(name, rows):
    """As a full fine-tuning of a base model leaves them: a tenth of a usual row away from untrained ones."""
    middle = np.median(rows[SIZE:], axis=0)
    rows[START], rows[END] = middle + 0.1 / WIDTH**0.5, middle - 0.1 / WIDTH**0.5


def found(folder, shards):
    return {rows.module: rows.tokens for rows in untrained_rows(folder, shards, read_manifest(shards))}


ZERO, UNUSED = "is near zero", "is like an unused token's"
TWINS = {"<|im_start|>": "is the same as that of '<|im_end|>'", "<|im_end|>": "is the same as that of '<|im_start|>'"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize(
    ("change", "embeddings", "head"),
    [
        (None, {}, {}),
        (tuned, {}, {}),
        (zeroed, {"<|im_end|>": ZERO}, {"<|im_end|>": ZERO}),
        (unused, {"<|im_end|>": UNUSED}, {"<|im_end|>": UNUSED}),
        # An answer never holds <|im_start|>, so its row in the head needs no training.
        (alike, TWINS, {"<|im_end|>": TWINS["<|im_end|>"]}),
    ],
    ids=lambda value: getattr(value, "__name__", "") if callable(value) else "",
)
def test_rows_are_looked_at(dtype, tied, files, change, embeddings, head, shards, tmp_path):
    folder = make_model(tmp_path / "model", tied=tied, dtype=dtype, files=files, change=change)
    expected = {"embed_tokens": embeddings, "lm_head": head}
    assert found(folder, shards) == {module: tokens for module, tokens in expected.items() if tokens}


def test_each_matrix_is_looked_at_for_itself(shards, tmp_path):
    assert found(make_model(tmp_path / "a", change=only_head), shards) == {"lm_head": {"<|im_end|>": ZERO}}
    both = {"<|im_start|>": ZERO, "<|im_end|>": ZERO}
    assert found(make_model(tmp_path / "b", change=only_embeddings), shards) == {"embed_tokens": both}


def test_unused_rows_that_do_not_lie_together_tell_nothing(shards, tmp_path):
    def scattered(name, rows):
        rows[SIZE:] = np.random.default_rng(1).normal(size=(ROWS - SIZE, WIDTH)) / WIDTH**0.5
        rows[END] = rows[SIZE]

    assert found(make_model(tmp_path / "model", change=scattered), shards) == {}


def test_tokens_that_no_document_has_are_left_alone(shards, tmp_path):
    """A template names tools and images too."""
    copy = shutil.copytree(shards, tmp_path / "shards")
    path = copy / "tokenizer" / "chat_template.jinja"
    path.write_text(path.read_text() + "{% if images %}<bos>{% endif %}")

    def without_bos(name, rows):
        rows[1] = 0

    assert found(make_model(tmp_path / "model", change=without_bos), copy) == {}


def test_real_rows_are_read_as_torch_reads_them(tiny_model_dir):
    folder = tiny_model_dir("qwen3")
    settings = json.loads((folder / "config.json").read_text())
    for matrix in find_matrices(folder, settings):
        name = HEAD if matrix.module == "lm_head" else EMBEDDINGS
        expected = load_file(folder / "model.safetensors")[name][[5, 0, 591]].float().numpy()
        assert np.array_equal(matrix.read([5, 0, 591]), expected)


def checked(folder, shards, tmp_path, *flags):
    base = ["--data", str(shards), "--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "run")]
    return load_run_config([*base, "--use_cpu", "--bf16", "false", *flags])


class TestRun:
    """What becomes of a run."""

    def report(self, *arguments):
        return examine(checked(*arguments), accelerate_config=None, world_size=1)

    @pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
    def test_adapters_alone_are_refused(self, tied, shards, tmp_path):
        folder = make_model(tmp_path / "model", tied=tied, change=zeroed)
        [problem] = self.report(folder, shards, tmp_path, *LORA).problems
        assert "embed_tokens: '<|im_end|>' is near zero; lm_head: '<|im_end|>' is near zero" in problem
        assert "write [embed_tokens, lm_head], train all weights" in problem
        half = [*LORA, "--lora_modules_to_save", "embed_tokens"]
        [problem] = self.report(folder, shards, tmp_path, *half).problems
        assert "(lm_head: '<|im_end|>' is near zero): write [embed_tokens, lm_head]" in problem

    @pytest.mark.parametrize(
        "flags",
        [
            ["--lora_modules_to_save", "embed_tokens", "lm_head"],
            ["--lora_modules_to_save", "lm_head", "--lora_target_modules", "q_proj", "model.embed_tokens"],
            ["--lora_modules_to_save", "lm_head", "--lora_target_parameters", "embed_tokens.weight"],
        ],
    )
    def test_adapters_next_to_trained_rows_pass(self, flags, shards, tmp_path):
        folder = make_model(tmp_path / "model", change=zeroed)
        lora = LORA if "--lora_target_modules" not in flags else ["--use_peft"]
        report = self.report(folder, shards, tmp_path, *lora, *flags)
        assert report.problems == []
        assert sum("'<|im_end|>' is near zero" in note for note in report.notes) == 2

    def test_full_fine_tuning_is_told(self, shards, tmp_path):
        report = self.report(make_model(tmp_path / "model", change=zeroed), shards, tmp_path)
        assert report.problems == []
        assert any("this run trains: lm_head: '<|im_end|>' is near zero" in note for note in report.notes)

    def test_a_sound_model_gets_no_word(self, shards, tmp_path):
        for flags in ([], LORA):
            report = self.report(make_model(tmp_path / "model"), shards, tmp_path, *flags)
            assert report.problems == [] and not any("untrained" in note for note in report.notes)

    def test_what_cannot_be_looked_at_is_named(self, shards, tmp_path):
        folder = make_model(tmp_path / "model")
        save_file({EMBEDDINGS: torch.zeros(ROWS, WIDTH, dtype=torch.uint8)}, folder / "model.safetensors")
        problems, notes = check_rows(checked(folder, shards, tmp_path, *LORA), read_manifest(shards))
        assert problems == []
        assert ["embed_tokens.weight is stored as U8" in note for note in notes] == [True]
        save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
        _, [note] = check_rows(checked(folder, shards, tmp_path), read_manifest(shards))
        assert "is called like embed_tokens" in note
        save_file({EMBEDDINGS: torch.zeros(ROWS, WIDTH)}, folder / "model.safetensors")  # a quantised head is no row
        _, [note] = check_rows(checked(folder, shards, tmp_path, *LORA), read_manifest(shards))
        assert "is called like lm_head" in note

    @pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
    def test_what_is_to_be_written_trains_the_rows(self, tied, shards, tiny_model_dir, tmp_path):
        folder = tiny_model_dir("llama", tie_word_embeddings=tied)
        options = {"data": str(shards), "model_name_or_path": str(folder), "num_train_epochs": 1, "learning_rate": 0.1}
        lora = {"use_peft": True, "lora_target_modules": ["q_proj"]}
        train_here(tmp_path, **options, **lora, lora_modules_to_save=["embed_tokens", "lm_head"])
        before = load_file(folder / "model.safetensors")
        after = load_file(tmp_path / "run" / "adapter_model.safetensors")
        for name in (EMBEDDINGS, HEAD):
            trained = after[f"base_model.model.{name}"]
            assert not torch.equal(trained[END], before.get(name, before[EMBEDDINGS])[END])

    def test_a_model_that_the_start_downloads_is_looked_at_then(
        self, shards, tiny_model_dir, tmp_path, monkeypatch, capfd
    ):
        folder = shutil.copytree(tiny_model_dir("llama"), tmp_path / "model")
        weights = load_file(folder / "model.safetensors")
        weights[HEAD][END] = 0
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        monkeypatch.setattr("train.preflight._check_rows", lambda *_: None)  # as where it is not here yet
        monkeypatch.setattr("train.run.run_record.base_model_of", lambda _: None)
        options = {"data": str(shards), "model_name_or_path": str(folder), "output_dir": str(tmp_path / "run")}
        options |= {"use_peft": True, "lora_target_modules": ["q_proj"], "expected_world_size": 1}
        options |= {"expected_distributed_type": "NO"}
        with as_a_fresh_process():
            assert main(["--config", str(run_config(tmp_path / "run.yaml", **options))]) == 2
        assert "(lm_head: '<|im_end|>' is near zero)" in "".join(capfd.readouterr())
