"""Lost ranks are explained, and end the others; one that hangs is named in time."""

from __future__ import annotations

import pytest

from tests.support.training import make_shards, run_config
from train.run import watchdog

LATE, GONE = "a process has not answered within ddp_timeout", "another process has ended"
WATCHDOG = "[Rank 2] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=10, OpType=BROADCAST, NumelIn=112, "
WATCHDOG += "NumelOut=112, Timeout(ms)=1800000) ran for 1805457 milliseconds before timing out."
NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, "
REMOTE = (
    "remote process exited or there was a network error, NCCL version 2.28.9\nncclRemoteError: A call failed possibly "
)
REMOTE += "due to a network error or a remote process exiting prematurely.\nLast error:\n"


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ("[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv", LATE),
        ("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:33759", GONE),
        ("[../gloo/transport/tcp/pair.cc:534] Read error [10.0.0.2]:11427: Connection reset by peer", GONE),
        ("wait timeout after 600000ms, keys: /default_pg/0//cuda//0", LATE),
        ("[Rank 0]: Ranks 1 failed to pass monitoredBarrier in 60000 ms: timeout", LATE),
        (WATCHDOG, LATE),
        (
            f"[PG ID 0 PG GUID 0 Rank 3] Process group watchdog thread terminated with exception: {WATCHDOG}",
            LATE,
        ),
        (f"NCCL communicator was aborted on rank 2.  Original reason for failure was: {WATCHDOG}", LATE),
        ("NCCL communicator was aborted on rank 1. ", GONE),
        (
            NCCL + REMOTE + "socketProgressOpt: Call to recv from 172.16.0.2<33759> failed : Connection reset by peer",
            GONE,
        ),
        (
            NCCL + REMOTE + "socketPollConnect: connect returned Connection refused, exceeded error retry count (35)",
            GONE,
        ),
        (NCCL + REMOTE + "NET/IB : Got completion from peer 10.0.0.2<39138> with error 12, opcode 0, len 0", GONE),
        (
            NCCL + "internal error, NCCL version 2.14.3\nncclInternalError: Internal check failed.\nLast error:\n"
            "Net : Connection closed by remote peer node7<50260>",
            GONE,
        ),
        (NCCL + "unhandled cuda error, NCCL version 2.28.9\nLast error:\nCuda failure 2 'out of memory'", None),
        ("CUDA error: the launch timed out and was terminated", None),
        ("DataLoader timed out after 60 seconds", None),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", None),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", None),
    ],
)
def test_what_a_lost_process_makes_of_a_collective_operation_is_put_into_words(message, meaning):
    found = watchdog.explain(RuntimeError(message))
    assert found is None if meaning is None else found.startswith(meaning) and message.splitlines()[0][:300] in found


@pytest.fixture(scope="module")
def lost(tmp_path_factory, worlds, tiny_tokenizer, tiny_model_dir):
    """A world in which a process dies, and one in which a process hangs; their logs and how long the second took."""
    folder = tmp_path_factory.mktemp("lost")
    shards = make_shards(folder, tiny_tokenizer.name_or_path, {"short": [1] * 30})
    for fault in ("die", "hang"):
        config = run_config(
            folder / f"{fault}.yaml",
            data=str(shards),
            model_name_or_path=str(tiny_model_dir("llama")),
            output_dir=str(folder / fault),
            max_steps=5,
            ddp_timeout=16,
        )
        log = folder / f"{fault}.log"
        codes = worlds.run("cpu_zero2", config, log, fault=[1, 3, fault])
        assert set(codes) == {1}, log.read_text()[-5000:]
    return folder


def test_a_process_that_dies_ends_the_others_with_the_reason(lost):
    log = (lost / "die.log").read_text()
    assert "sft: error: another process has ended: " in log or "Timeout (0:00:20)!" in log


def test_a_process_that_hangs_is_named_before_ddp_timeout_ends_those_that_wait(lost):
    log = (lost / "hang.log").read_text()
    assert "sft: error: rank 1 on " in log and " hangs: in step 3 (forward) since " in log
    assert "in faulty" in log  # where
    assert "a process has not answered within ddp_timeout" not in log and "Timeout (0:00:20)!" not in log
