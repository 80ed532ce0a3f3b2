"""The code in docs/training.md that goes on into TRL's DPO runs, from an export of ours."""

from __future__ import annotations

import json
import re

from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT
from tests.support.export_runs import add_checkpoint, run_export
from tests.support.in_process import as_a_fresh_process


def example() -> str:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.split("## Preference tuning afterwards")[1]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    return found[1]


def test_an_export_goes_on_into_dpo(tiny_run, tiny_model_dir, tmp_path, monkeypatch):
    add_checkpoint(tiny_run, 0, tiny_model_dir("llama"))
    run_export(tiny_run, tmp_path / "exports" / "mine")
    turns = {"prompt": ("user", "a"), "chosen": ("assistant", "b"), "rejected": ("assistant", "c")}
    pair = {name: [{"role": role, "content": text}] for name, (role, text) in turns.items()}
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for _ in range(4)))
    monkeypatch.chdir(tmp_path)
    short = 'beta=0.1, use_cpu=True, bf16=False, max_steps=1, report_to="none")'
    with as_a_fresh_process():
        exec(compile(example().replace("beta=0.1)", short), "docs/training.md", "exec"), {})
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / "exports" / name) for name in ("mine", "dpo"))
    assert theirs.chat_template == ours.chat_template
    stops = [AutoModelForCausalLM.from_pretrained(tmp_path / "exports" / n).generation_config for n in ("mine", "dpo")]
    assert stops[0].eos_token_id == stops[1].eos_token_id
