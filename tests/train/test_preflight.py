"""train.preflight: a sound set-up passes, damaged data is found, and the command lists every problem."""

from __future__ import annotations

import hashlib
import json

from tests.support.preflight_files import write_model, write_shards
from tests.support.preflight_runs import problems
from train.preflight import main


def test_a_sound_set_up_passes(flags, launch_file):
    assert problems(flags, launch=launch_file()) == ""
    assert problems(flags) == ""


class TestData:
    def test_not_finished(self, flags, shards):
        (shards / "manifest.json").unlink()
        assert "its preparation has not finished" in problems(flags)

    def test_no_such_directory(self, flags):
        assert "no such directory" in problems([*flags[2:], "--data", "nowhere"])

    def test_another_format(self, flags, shards):
        manifest = json.loads((shards / "manifest.json").read_text())
        (shards / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
        assert "expected format_version 1, found 99" in problems(flags)

    def test_a_shard_is_missing_or_cut(self, flags, shards):
        file = shards / "train" / "00000.arrow"
        file.write_bytes(file.read_bytes()[:-8])
        (shards / "eval" / "00000.arrow").unlink()
        found = problems(flags)
        assert f"data: {file}: expected" in found
        assert f"data: {shards / 'eval' / '00000.arrow'}: missing" in found

    def test_changed_bytes_are_found_on_request(self, flags, shards, capsys):
        file = shards / "train" / "00000.arrow"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        assert main(flags) == 0
        assert main([*flags, "--verify_data"]) == 2
        assert "the bytes have changed" in capsys.readouterr().err

    def test_nothing_to_train_on(self, tmp_path, flags):
        empty = write_shards(tmp_path / "empty", rows=0)
        assert "has no rows to train on" in problems([*flags[2:], "--data", str(empty)])


class TestCommand:
    def test_summary_and_exit_code(self, flags, launch_file, capsys):
        assert main([*flags, "--accelerate_config", str(launch_file()), "--warmup_steps", "2"]) == 0
        out = capsys.readouterr().out
        assert "16 rows a step = 8 x 1 accumulated x 2 processes: about 256 tokens, 128 of them trained" in out
        assert "9 in all, 3 an epoch, 2 of warm-up" in out
        assert "preflight: nothing wrong found" in out

    def test_every_problem_is_listed(self, flags, launch_file, model, capsys):
        write_model(model, vocab_size=5)
        more = ["--load_best_model_at_end", "--expected_world_size", "8", "--attn_implementation", "flash_attention_2"]
        file = launch_file(deepspeed={"zero3_init_flag": True})
        assert main([*flags, *more, f"--accelerate_config={file}"]) == 2
        err = capsys.readouterr().err
        assert "5 problem(s)" in err
        for words in (
            "vocab_size is 5",
            "load_best_model_at_end",
            "expected_world_size",
            "flash_attention_2",
            "zero3_init",
        ):
            assert words in err

    def test_launch_problems_beside_a_wrong_run_config(self, flags, launch_file, capsys):
        file = launch_file(distributed_type="MULTI_CPU")
        assert main([*flags, "--packing", "--accelerate_config", str(file)]) == 2
        err = capsys.readouterr().err
        assert "MULTI_CPU starts one process" in err
        assert "flag --packing: True is refused" in err

    def test_number_of_processes(self, flags, launch_file, capsys):
        file = launch_file(num_processes=None)
        assert main([*flags, "--accelerate_config", str(file), "--num_processes", "4"]) == 0
        assert "x 4 processes" in capsys.readouterr().out
        assert main([*flags, "--accelerate_config", str(file)]) == 0
        assert "the number of processes is not known" in capsys.readouterr().out
        assert main([*flags, "--num_processes", "0"]) == 2
        assert "--num_processes: expected a whole number of 1 or more, found '0'" in capsys.readouterr().err
        assert main([*flags, "--accelerate_config"]) == 2
        assert "--accelerate_config: expected one argument" in capsys.readouterr().err
        assert main([*flags, "--num_processes", "1", "--num_processes=2"]) == 2
        assert "--num_processes: given twice: keep one" in capsys.readouterr().err

    def test_the_data_stays_untouched(self, flags, shards, launch_file):
        before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in shards.rglob("*") if p.is_file()}
        main([*flags, "--accelerate_config", str(launch_file()), "--verify_data"])
        assert before == {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in shards.rglob("*") if p.is_file()}
