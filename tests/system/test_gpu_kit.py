"""The kit of tests/gpu without its models: what runs in which time, what is kept, what is packed, what is recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress

import psutil
import pytest

from tests.conftest import ROOT
from tests.gpu import carry, collect, figures, run, stages
from tests.support.training import kill

WORK = """
import sys, time
from pathlib import Path
from tests.gpu import figures
what, folder = sys.argv[1], Path(sys.argv[2])
figures.note({"began": what})
(folder / "ran").open("a").write(what + "\\n")
if what == "fails" and not (folder / "mended").exists():
    raise RuntimeError("on purpose")
if what == "hangs" and not (folder / "mended").exists():
    time.sleep(600)
figures.note({"found": what})
"""


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """`call(seconds, *names)`: run stages that are short scripts; the exit code, and the figures by stage."""
    (tmp_path / "work.py").write_text(WORK)
    made = [
        stages.Stage(name=name, what="", estimate=1, limit=3, module=("work", name, str(tmp_path)))
        for name in ("good", "fails", "hangs", "last")
    ]
    monkeypatch.setattr(stages, "STAGES", tuple(made))
    monkeypatch.setattr(run, "PROBE", "raise SystemExit(1)")
    monkeypatch.setattr(run, "commit", lambda: "abc")
    monkeypatch.setattr(stages.Stage, "command", lambda self, rehearsed: ["-m", *self.module])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def call(seconds, *names, out="out"):
        monkeypatch.setenv("OUT", str(tmp_path / out))
        code = run.main([str(seconds), *names, "--state", str(tmp_path / "state")])
        return code, {entry["stage"]: entry for entry in figures.read(tmp_path / out / "figures.jsonl")}

    handler = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, handler)


class TestRun:
    def test_a_failure_costs_no_other_stage_and_a_second_call_goes_on(self, kit, tmp_path, capsys):
        code, found = kit(60)
        assert code == 1
        assert {name: entry["code"] for name, entry in found.items() if name != "machine"} == {
            "good": 0, "fails": 1, "hangs": run.OVER, "last": 0,
        }  # fmt: skip
        assert found["good"]["result"] == {"began": "good", "found": "good"}
        assert found["hangs"]["result"] == {"began": "hangs"}  # what it had found by then
        assert (tmp_path / "out/log.txt").read_text().count("=== ended after 3 s: its time was over") == 1
        said = capsys.readouterr().out
        assert "fails: exit code 1" in said and "RuntimeError: on purpose" in said
        assert "hangs: its time was over" in said and "not ended well: fails, hangs" in said
        (tmp_path / "mended").touch()
        code, found = kit(60, out="second")
        assert code == 0 and set(found) == {"machine", "fails", "hangs"}
        assert (tmp_path / "ran").read_text().split() == ["good", "fails", "hangs", "last", "fails", "hangs"]

    def test_the_first_line_names_the_machine(self, kit, tmp_path):
        kit(60, "good")
        first = figures.read(tmp_path / "out" / "figures.jsonl")[0]
        assert first["stage"] == "machine" and first["commit"] == "abc" and first["versions"]["numpy"]
        assert {"device", "driver", "date", "python", "cpus"} <= set(first)

    def test_another_commit_runs_all_again(self, kit, tmp_path, monkeypatch):
        kit(60, "good")
        monkeypatch.setattr(run, "commit", lambda: "def")
        assert "good" in kit(60, "good", out="second")[1]

    def test_what_does_not_fit_the_time_is_skipped(self, kit):
        code, found = kit(0.5, "good")
        assert code == 1 and found["good"]["skipped"].endswith("s are left, it needs about 1")

    def test_an_unknown_stage(self, kit, capsys):
        with pytest.raises(SystemExit):
            kit(60, "god")
        assert "no stage god: expected some of good, fails" in capsys.readouterr().err

    @pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
    def test_a_killed_call_leaves_no_stage_behind_and_keeps_what_ended(self, sent, tmp_path):
        long = "import time; time.sleep(99)"
        code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from tests.gpu import run, stages
make = lambda name, n: stages.Stage(name=name, what="", estimate=1, limit=99, module=("timeit", "-n1", "-r1", n))
stages.STAGES = (make("short", "1"), make("long", {long!r}))
stages.Stage.command = lambda self, rehearsed: ["-m", *self.module]
run.PROBE, run.commit = "raise SystemExit(1)", lambda: "abc"
run.main(["100", "--state", {str(tmp_path / "state")!r}])
"""
        process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OUT": str(tmp_path)})
        deadline = time.monotonic() + 60
        while not (children := [c for c in psutil.Process(process.pid).children() if last(c) == long]):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(sent)
        gone, alive = psutil.wait_procs(children, timeout=30)
        kill(process)
        assert (len(gone), alive) == (1, [])
        stages_of = [entry["stage"] for entry in figures.read(tmp_path / "figures.jsonl")]
        assert stages_of == ["machine", "short"]
        assert [entry["stage"] for entry in figures.read(next((tmp_path / "state").glob("done-abc*")))] == ["short"]


def last(child: psutil.Process) -> str:
    """Its last argument: of a new process that of its parent, of an ended one none."""
    with suppress(psutil.Error):
        return (child.cmdline() or [""])[-1]
    return ""


def test_a_torn_line_costs_no_other(tmp_path):
    file = tmp_path / "figures.jsonl"
    figures.append(file, {"a": 1})
    with file.open("a") as torn:
        torn.write('{"b": ')  # a kill in the middle of a write
    figures.append(file, {"c": 3})
    assert figures.read(file) == [{"a": 1}, {"c": 3}]


def test_stages_and_their_limits():
    assert len({stage.name for stage in stages.STAGES}) == len(stages.STAGES)
    assert all(stage.estimate < stage.limit for stage in stages.STAGES)
    launched = next(stage for stage in stages.STAGES if stage.launcher)
    for rehearsed in (False, True):
        command = launched.command(rehearsed)
        assert (ROOT / command[command.index("--config_file") + 1]).exists()


WHEELS = [
    "trl-1.16.0-py3-none-any.whl", "datasets-5.2.0-py3-none-any.whl", "transformers-5.23.0-py3-none-any.whl",
    "peft-0.21.2-py3-none-any.whl", "rensa-0.5.0-cp312-cp312-manylinux_2_28_x86_64.whl",
    "dill-0.4.1-py3-none-any.whl", "multiprocess-0.70.19-py312-none-any.whl", "pydantic-2.14.3-py3-none-any.whl",
    "pydantic_core-2.50.4-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    "annotated_types-0.8.0-py3-none-any.whl", "typing_extensions-4.16.0-py3-none-any.whl",
    "typing_inspection-0.4.5-py3-none-any.whl", "hjson-3.1.0-py3-none-any.whl",
    "bitsandbytes-0.50.2-py3-none-manylinux_2_24_x86_64.whl", "deepspeed-0.19.8-py3-none-any.whl",
    "liger_kernel-0.8.5-py3-none-any.whl",
]  # fmt: skip


class TestCarry:
    def test_wheels_as_they_were_packed(self):
        carry.check(WHEELS)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (WHEELS[1:], "no wheel of trl"),
            ([*WHEELS, "trl-1.15.0-py3-none-any.whl"], "2 wheels of trl"),
            ([*WHEELS, "wandb-0.31.0-py3-none-any.whl"], "wandb was not asked for"),
            ([*WHEELS[:4], "rensa-0.5.0-cp311-cp311-manylinux_2_28_x86_64.whl", *WHEELS[5:]], "rensa.*does not fit"),
            ([*WHEELS[:4], "rensa-0.5.0-cp312-cp312-manylinux_2_28_aarch64.whl", *WHEELS[5:]], "rensa.*does not fit"),
        ],
    )
    def test_wheels_that_would_fail_there(self, names, message):
        with pytest.raises(ValueError, match=message):
            carry.check(names)

    @pytest.mark.parametrize(
        ("tags", "fits"),
        [
            ("py2.py3-none-any", True), ("cp39-abi3-manylinux_2_17_x86_64", True), ("cp310-abi3-win_amd64", False),
            ("cp313-abi3-manylinux_2_17_x86_64", False), ("py3-none-manylinux_2_24_x86_64", True),
            ("py2-none-any", False), ("cp312-cp312-macosx_11_0_x86_64", False),
        ],
    )  # fmt: skip
    def test_tags(self, tags, fits):
        assert carry.fits(f"some-1.0-{tags}.whl") == fits

    def test_versions_are_those_of_constraints(self):
        text = (ROOT / "constraints.txt").read_text()
        assert set(carry.pinned(text, [*carry.LACKED, *carry.FROM_SOURCE]).values()) <= set(
            text.replace("==", "\n").split()
        )
        with pytest.raises(ValueError, match=r"constraints\.txt names no version of nothing"):
            carry.pinned(text, ["trl", "nothing"])

    def test_libraries_for_another_cuda_are_left_out(self, tmp_path):
        wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as made:
            for name in ("b/a.py", "b/lib_cuda118.so", "b/lib_cuda130.so", "b-1.dist-info/RECORD"):
                made.writestr(name, name * 100)
        carry.keep_libraries(wheel, {"lib_cuda130.so"})
        with zipfile.ZipFile(wheel) as made:
            assert made.namelist() == ["b/a.py", "b/lib_cuda130.so", "b-1.dist-info/RECORD"]
            record = made.read("b-1.dist-info/RECORD").decode().splitlines()
            assert [line.split(",")[0] for line in record if line] == made.namelist()
        with pytest.raises(ValueError, match=r"has no lib_cuda140\.so"):
            carry.keep_libraries(wheel, {"lib_cuda140.so"})

    def test_what_travels(self, tmp_path, monkeypatch, capsys):
        folder, git = tmp_path / ".whl", ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        folder.mkdir()
        for name in WHEELS:
            (folder / name).write_bytes(b"0" * 2**16)
        (tmp_path / ".gitignore").write_text(".whl/\n")
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
            subprocess.run([*git, *command], check=True)
        carry.finish(folder, tmp_path)
        commit = (folder / "COMMIT").read_text().strip()
        assert len(commit) == 40 and "bash .whl/run.sh 440" in capsys.readouterr().out
        (tmp_path / ".gitignore").write_text(".whl/\n.venv/\n")
        assert carry.state_of_tree(tmp_path).startswith(f"{commit}+")  # not what that commit names
        monkeypatch.setattr(carry, "LIMIT_MIB", 1)
        with pytest.raises(ValueError, match="too much to travel: expected at most 1"):
            carry.finish(folder, tmp_path)


def test_run_sh_installs_once_and_hands_over_the_rest_of_the_time(tmp_path):
    """With a Python that writes down how it was called."""
    (tmp_path / "tests/gpu").mkdir(parents=True)
    (tmp_path / ".whl").mkdir()
    (tmp_path / "tests/gpu/run.sh").write_text((ROOT / "tests/gpu/run.sh").read_text())
    (tmp_path / ".whl/run.sh").write_text(carry.RUN)
    (tmp_path / ".whl/a.whl").write_text("a")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\n'
        'while [ $# -gt 1 ]; do [ "$1" = --target ] && mkdir -p "$2"; shift; done\nexit 0\n'
    )
    python.chmod(0o755)
    environment = {**os.environ, "PACKHAUL_STATE": str(tmp_path / "state"), "PACKHAUL_PYTHON": str(python)}

    def call(*arguments):
        command = ["bash", ".whl/run.sh", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        (tmp_path / "calls").unlink(missing_ok=True)
        return done, [line.split()[2] if line.startswith("-m pip") else line for line in calls]

    done, calls = call()
    assert done.returncode != 0 and "expected the seconds that the call may take" in done.stderr and not calls
    started = [f"-m tests.gpu.run --state {tmp_path}/state {left} smoke" for left in (438, 439, 440)]
    assert call("440", "smoke")[1][0] == "install"
    calls = call("440", "smoke")[1]
    assert len(calls) == 1 and calls[0] in started
    (tmp_path / ".whl/a.whl").write_text("b")
    assert call("440", "smoke")[1][0] == "install"


def entry(stage, code=0, **result):
    return {"stage": stage, "code": code, "seconds": 30.0, "result": result}


MACHINE = {"stage": "machine", "device": "NVIDIA H100 80GB HBM3", "driver": "580.1", "memory": "81559 MiB"}
MACHINE |= {"commit": "abc", "date": "2026-01-02T03:04:05+00:00", "python": "3.12.3", "cpus": 16, "rehearsal": False}
MACHINE |= {"versions": {"torch": "2.11.0", "trl": "1.16.0"}}
SPEED = {"way": "packhaul", "attention": "varlen", "tokens_per_second": 24000, "trained_tokens_per_second": 16000}
SPEED |= {"step_seconds": 1.36, "mfu": 0.2512, "mfu_6n": 0.28, "peak_gib": 55.5, "estimated_gib": 58.1}


class TestCollect:
    def write(self, file, *entries):
        for line in entries:
            figures.append(file, line)
        return file

    def test_two_calls_become_one_results_file(self, tmp_path, capsys):
        first = self.write(tmp_path / "1.jsonl", MACHINE, entry("full", **SPEED), entry("lora", 124))
        second = self.write(tmp_path / "2.jsonl", MACHINE, entry("full", 1), entry("lora", **SPEED))
        assert collect.main([str(first), str(second), "--output", str(tmp_path / "gpu_x.json")]) == 0
        found = json.loads((tmp_path / "gpu_x.json").read_text())
        assert found["machine"]["driver"] == "580.1" and found["machine"]["versions"]["torch"] == "2.11.0"
        assert {name: stage["code"] for name, stage in found["stages"].items()} == {"full": 0, "lora": 0}
        assert collect.results(tmp_path) == [found]

    @pytest.mark.parametrize(
        ("machines", "message"),
        [
            ([], "expected a first line that names the machine"),
            ([{**MACHINE, "rehearsal": True}], "figures of a rehearsal"),
            ([MACHINE, {**MACHINE, "commit": "def"}], "expected figures of one commit, found abc, def"),
            ([MACHINE, {**MACHINE, "device": "NVIDIA H200"}], "expected figures of one device"),
        ],
    )
    def test_refused(self, machines, message, tmp_path, capsys):
        file = self.write(tmp_path / "1.jsonl", *machines, entry("full", **SPEED))
        assert collect.main([str(file), "--output", str(tmp_path / "out.json")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out.json").exists()

    def test_tables(self, tmp_path):
        checks = entry("kernels", 1, test_a="passed", test_b="failed")
        smoke = entry("smoke", 1, kernel={"seconds": 1}, answers={"error": "no"})
        save = entry("save", **SPEED, save_stall_seconds=[0.25])
        file = self.write(tmp_path / "1.jsonl", MACHINE, entry("full", **SPEED), checks, smoke, save)
        text = "\n".join(collect.measured_tables([collect.collected([file])]))
        assert "**NVIDIA H100 80GB HBM3**, driver 580.1, 2026-01-02, commit `abc`" in text and "torch 2.11.0" in text
        assert "| 16,000 | 24,000 | 0.251 | 0.280 | 1.36 | 55.5 (58.1) | attention varlen |" in text
        assert "FAILED (exit code 1); 1 passed, 1 failed; `test_b` |" in text
        assert "FAILED (exit code 1); 1 passed, 1 failed; `answers` |" in text
        assert "training waited 0.25 s for saves" in text
        assert text.count(collect.NOT_RUN) == len(stages.STAGES) - 4

    def test_the_page_is_made_from_the_results(self):
        """Run `python -m tests.gpu.collect --docs` after a change of results or stages."""
        text = collect.PAGE.read_text()
        assert collect.page(text, collect.results(collect.RESULTS)) == text
        figure = text.replace(f"| {collect.NOT_RUN} |", "| 12,345 |", 2)
        assert figure != text
        assert collect.page(figure, collect.results(collect.RESULTS)) == text  # a figure written by hand goes
