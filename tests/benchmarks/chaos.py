"""Kill a run at random moments, resume it each time, and compare its end with an uninterrupted twin.

    python -m tests.benchmarks.chaos [--kills 100] [--steps 400] [--seed 0] [--folder DIR] [--in-job]

Each attempt is the same `train.sft` command, in a process forked after the imports (they touch no file of the run, and
would be nearly all of the time). It is killed (SIGKILL) in its start-up, in a step, while a checkpoint is written,
while one is published, or while old ones are deleted; after every kill the run directory is examined. The last line is
JSON: `kills` and how many at each moment, `unreadable` (folders with a checkpoint's name that are not complete and
unchanged, or attempts that could not go on), `lost_steps` (steps that the next attempt did again although a published
checkpoint held them) and `equal` (weights and logged losses bit for bit those of the twin).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

if not __package__:
    sys.exit(f"start it from the repository root: python -m tests.benchmarks.{Path(__file__).stem}")

from tests.support import chaos_job
from train.checkpoint import folders

MOMENTS = ("start-up", "step", "save", "publish", "delete")
TIMEOUT = 120  # seconds for what an attempt is to do next; a hang is a failure
SAVE_STEPS = 3


def main(argv: list[str] | None = None) -> int:
    """Prepare, run the twin, then the run that is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=0, help="of the run; 0: enough for the kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder without it")
    job_help = "one SLURM job starts all attempts, in the same allocation (the real slurm.jobs, without a cluster)"
    parser.add_argument("--in-job", action="store_true", help=job_help)
    options = parser.parse_args(argv)
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    steps = options.steps or 20 + 3 * options.kills
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        make_inputs(folder)
        result = run_chaos(folder, options.kills, steps, random.Random(options.seed), options.in_job)
    print(json.dumps(result))
    return 0 if result["equal"] and not result["unreadable"] and not result["lost_steps"] else 1


def make_inputs(folder: Path) -> None:
    """A tokenizer, a tiny model and shards, in a process of its own: nothing of torch has run when attempts fork."""
    child = os.fork()
    if child == 0:
        with _exiting():
            from tests.conftest import build_tiny_tokenizer, save_tiny_model
            from tests.support.training import make_shards

            tokenizer = build_tiny_tokenizer(folder / "tokenizer")
            save_tiny_model("llama", tokenizer, folder / "model", {"attention_dropout": 0.2})
            make_shards(folder, str(folder / "tokenizer"), {"short": [1] * 60, "long": [5] * 10}, eval_fraction=0.1)
    assert os.waitpid(child, 0)[1] == 0


def run_chaos(folder: Path, kills: int, steps: int, chance: random.Random, in_job: bool) -> dict[str, object]:
    """The twin, the killed run, and what came of it."""
    from tests.support.world_runs import import_libraries

    import_libraries()
    began = time.monotonic()
    assert wait(start(folder, "twin", steps)) == 0, (folder / "twin.log").read_text()[-3000:]
    done, unreadable, lost = Counter[str](), 0, 0
    expected = 0  # the step that the next attempt must begin after
    job = chaos_job.Job(folder, write_config(folder, "killed", steps)) if in_job else None
    while sum(done.values()) < kills:
        moment = chance.choice(MOMENTS)
        assert job is None or job.asks(), "the job has ended: see job.log"
        child = start(folder, "killed", steps)
        hit = kill_at(child, folder, moment, chance)
        if job and hit:
            job.tell(128 + signal.SIGKILL)
        lost += max(0, expected - resumed_step(folder)) if resumed_step(folder) is not None else 0
        if not hit:
            print(f"chaos: the run reached its end after {sum(done.values())} kills: give more --steps", flush=True)
            break
        done[moment] += 1
        bad, expected = examine(folder / "killed")
        unreadable += bad
        print(f"kill {sum(done.values())} in {moment}: newest checkpoint {expected}", flush=True)
    assert job is None or job.asks(), "the job has ended: see job.log"
    code = wait(start(folder, "killed", steps))
    if job:
        job.tell(code)
        code = job.wait()
    unreadable += code != 0
    lost += max(0, expected - (resumed_step(folder) or 0))
    equal = code == 0 and same_end(folder / "killed", folder / "twin")
    return {
        "kills": sum(done.values()),
        **{f"in_{moment}": done[moment] for moment in MOMENTS},
        "unreadable": unreadable,
        "lost_steps": lost,
        "equal": equal,
        "steps": steps,
        "in_job": in_job,
        "seconds": round(time.monotonic() - began, 1),
    }


def start(folder: Path, name: str, steps: int) -> int:
    """Fork an attempt; its process id."""
    config = write_config(folder, name, steps)
    sys.stdout.flush()
    # Opened here: the child may be killed before it does anything.
    out = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    child = os.fork()
    if child == 0:
        with _exiting():
            os.dup2(out, 1)
            os.dup2(out, 2)
            from train import sft

            raise SystemExit(sft.main(["--config", str(config)]))
    os.close(out)
    return child


def write_config(folder: Path, name: str, steps: int) -> Path:
    """The run config of the twin or the killed run."""
    from tests.support.saving_runs import single_config

    return single_config(
        folder / f"{name}.yaml",
        data=str(folder / "shards"),
        model_name_or_path=str(folder / "model"),
        output_dir=str(folder / name),
        max_steps=steps,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        logging_steps=4,
    )


@contextlib.contextmanager
def _exiting():
    """End a forked child here, whatever happens: it must not go on as its parent."""
    code = 1
    try:
        yield
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of an attempt that runs to its end."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(child: int, folder: Path, moment: str, chance: random.Random) -> bool:
    """Kill the attempt at a random time around the moment; False if it came to its end before."""
    run_dir, log = folder / "killed", folder / "killed.log"
    before = {p.name for p in run_dir.glob("checkpoint-*")}
    saves = chance.randint(1, 3)
    seen: set[str] = set()

    def begun(pattern: str) -> bool:
        seen.update(str(p) for p in run_dir.glob(pattern))
        return len(seen) >= saves

    conditions: dict[str, tuple[Callable[[], bool], float]] = {
        "start-up": (lambda: True, 1.0),
        "step": (lambda: "sft: 1 process(es)" in log.read_text(), 1.0),
        "save": (lambda: begun(".saving-*"), 0.08),
        "publish": (lambda: begun(".saving-*/all/*"), 0.04),
        "delete": (lambda: begun(".deleting-*") or (len(before) < 2 and bool(begun("checkpoint-*"))), 0.005),
    }
    ready, spread = conditions[moment]
    deadline = time.monotonic() + TIMEOUT
    while not ready():
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        assert time.monotonic() < deadline, f"no {moment} within {TIMEOUT} s: {log.read_text()[-3000:]}"
        time.sleep(0.0005)
    time.sleep(chance.uniform(0, spread))
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def examine(run_dir: Path) -> tuple[int, int]:
    """How many folders have a checkpoint's name and are not complete and unchanged, and the newest step."""
    newest, bad = 0, len(list(run_dir.glob("damaged-*")))
    for folder in folders.named_folders(run_dir):
        try:
            found = folders.read(folder)
            bad += bool(list(folders.verify(found)))
            newest = max(newest, found.step)
        except ValueError as error:
            print(f"chaos: {error}", flush=True)
            bad += 1
    return bad, newest


def resumed_step(folder: Path) -> int | None:
    """The step after which the last attempt began, or at which it found the run finished; None if it was killed before
    it said so."""
    log = (folder / "killed.log").read_text()
    if found := re.search(r"resuming from .* \(step (\d+)\)|finished before, after (\d+) steps", log):
        return int(found[1] or found[2])
    return 0 if "sft: step " in log else None


def same_end(run_dir: Path, twin: Path) -> bool:
    """Weights and the logged losses, bit for bit."""
    import torch
    from safetensors.torch import load_file

    got, wanted = (load_file(d / "model.safetensors") for d in (run_dir, twin))
    logs = [json.loads((d / "trainer_state.json").read_text())["log_history"] for d in (run_dir, twin)]
    losses = [[(h["step"], h["loss"], h["grad_norm"]) for h in log if "loss" in h] for log in logs]
    return (
        got.keys() == wanted.keys() and all(torch.equal(got[n], wanted[n]) for n in wanted) and losses[0] == losses[1]
    )


if __name__ == "__main__":
    sys.exit(main())
