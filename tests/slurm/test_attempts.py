"""Several attempts in one job: a failure is outlived within bounds, and the log ends with the first error."""

from __future__ import annotations

import json
import signal
import time

import pytest

from slurm.jobs.attempt import Attempt
from tests.support.slurm_stand_ins import value, wait_for


def attempts(project) -> list[str]:
    return sorted(path.name for path in (project.folder / "slurm/logs/train").glob("*-attempt*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tries", "limit", "code", "number"),
    [
        ("saves and fails;saves and fails;completes", "1", 0, 3),  # each has left a checkpoint
        ("saves and fails;fails;completes", "1", 3, 2),
        ("fails;completes", "1", 3, 1),
        ("fails;completes", "2", 0, 2),
        ("fails;saves and fails;fails;completes", "2", 0, 4),  # a checkpoint starts the count again
        ("fails;fails;completes", "2", 3, 2),
        ("saves and fails;refuses;completes", "9", 2, 2),
        ("loses its port;completes", "1", 0, 2),
        ("loses its port", "1", 4, 4),  # three times, and then it counts
        ("loses its port", "2", 4, 5),
    ],
)
def test_a_failure_is_outlived_within_bounds(project, tries, limit, code, number):
    assert project.train(FAKE_TRAIN=tries, PACKHAUL_MAX_FAILURES=limit) == code, project.log
    assert len(attempts(project)) == number
    assert (project.folder / "slurm/logs/train/latest").resolve().name == attempts(project)[-1]
    assert not project.requeued()


def test_each_attempt_has_a_port_that_was_not_lost(project):
    project.train(FAKE_TRAIN="loses its port;completes")
    ports = [value(call, "--main_process_port") for call in project.calls("launch")]
    assert len(set(ports)) == 2


def test_a_failure_after_the_signal_is_not_tried_again(project):
    assert project.train_with_signal(FAKE_TRAIN="waits,saves and fails") == 3
    assert len(attempts(project)) == 1


@pytest.mark.parametrize(
    ("name", "text"), [("FAKE_STATE", "CANCELLED"), ("FAKE_STATE", "COMPLETING"), ("FAKE_RESTARTS", "1")]
)
def test_a_job_that_is_cancelled_or_started_again_by_slurm_tries_nothing(project, name, text):
    assert project.train(FAKE_TRAIN="saves and fails;completes", **{name: text}) == 3
    assert len(attempts(project)) == 1


def test_the_first_error_itself_is_the_last_line(project):
    assert project.train(FAKE_TRAIN="fails") == 3
    assert project.log.splitlines()[-1] == "packhaul: rank 1 on gpu07: what fails"


def test_an_error_that_follows_from_another_is_not_taken_for_the_first(project):
    project.train(FAKE_TRAIN="completes")
    (logs,) = (project.folder / "slurm/logs/train").glob("*-attempt0")
    late = {"time": 5.0, "rank": 3, "host": "gpu12", "exit_code": 1, "message": "CUDA error", "consequence": False}
    early = {**late, "time": 1.0, "rank": 0, "message": "another process has ended", "consequence": True}
    for error in (late, early):
        (logs / f"error-rank{error['rank']}.json").write_text(json.dumps(error))
    attempt = Attempt.__new__(Attempt)
    attempt.log_dir = str(logs)
    assert attempt.first_error() == late


def test_a_rank_that_hung_comes_before_the_errors_that_follow_from_it(project):
    assert project.train(FAKE_TRAIN="hangs") == 5
    assert project.log.splitlines()[-1] == "packhaul: rank 1 on gpu07 hangs: in a save since 14:02:11"


def test_a_rank_that_died_without_a_word_comes_before_what_the_others_say_of_it(tmp_path, capfd):
    attempt = Attempt.__new__(Attempt)
    attempt.log_dir, attempt.ended = str(tmp_path), "failed"
    late = {"rank": 1, "host": "gpu12", "time": 2.0, "message": "another process has ended", "consequence": True}
    (tmp_path / "error-rank1.json").write_text(json.dumps(late))
    first = {"who": "rank 0", "host": "gpu07", "exit_code": 137, "time": 1.0}
    (tmp_path / "launch-node0.json").write_text(json.dumps(first))
    attempt.say_first_error()
    assert capfd.readouterr().err == "packhaul: rank 0 on gpu07 ended with exit code 137, and said nothing\n"


def test_a_refused_srun_is_no_dead_node_and_its_reason_is_shown(project):
    refusal = "srun: error: Unable to create step for job 31234: Memory required by task is not available"
    assert project.train(FAKE_TRAIN="fails", FAKE_SRUN_ERROR=refusal) == 3
    assert refusal in project.log and "waiting up to" not in project.log
    assert "training failed, not requeued" in project.log


def test_a_node_that_slurm_calls_lost_is_waited_for(project):
    lost = {"FAKE_SRUN_ERROR": "srun: error: step creation failed", "FAKE_SINFO": "gpu07|allocated,gpu12|down*"}
    assert project.train(FAKE_TRAIN="fails", FAKE_STATE="RUNNING;NODE_FAIL", **lost) == 3
    assert "waiting up to 61 s for SLURM to notice it" in project.log
    assert "SLURM does not start this job again" in project.log
    assert "node gpu12 is left out from now on: it does not answer" in project.log


def test_a_spare_node_takes_the_place_of_a_lost_one(project):
    spare = {"PACKHAUL_SPARE_NODES": "1", "SLURM_JOB_NUM_NODES": "3", "FAKE_NODES": "gpu07 gpu12 gpu31"}
    lost = {"FAKE_SRUN_ERROR": "srun: error: step creation failed", "FAKE_SINFO": "gpu07|allocated,gpu12|down*"}
    assert project.train(FAKE_TRAIN="fails;completes", **spare, **lost) == 0, project.log
    nodes = [value(call, "--nodelist") for call in project.calls("srun") if "launch" in call["arguments"]]
    assert nodes == ["gpu07,gpu12", "gpu07,gpu31"]
    assert {value(call, "--num_processes") for call in project.calls("launch")} == {"8"}


@pytest.mark.parametrize(
    ("spare", "code", "said"),
    [("1", 0, "left out from now on: GPU 3 is slow"), ("0", 1, "a node cannot train")],
)
def test_a_node_that_the_check_names(project, spare, code, said):
    nodes = {"0": "gpu07 gpu12", "1": "gpu07 gpu12 gpu31"}[spare]
    env = {"PACKHAUL_SPARE_NODES": spare, "SLURM_JOB_NUM_NODES": str(2 + int(spare)), "FAKE_NODES": nodes}
    unfit = json.dumps({"gpu12": ["GPU 3 is slow"]})
    assert project.train(PACKHAUL_CHECK_NODES="1", FAKE_UNFIT=unfit, **env) == code, project.log
    assert said in project.log
    trained = [value(call, "--nodelist") for call in project.calls("srun") if "launch" in call["arguments"]]
    assert trained == (["gpu07,gpu31"] if code == 0 else [])


def test_a_failure_is_no_loss_of_the_node_that_the_check_has_named(project):
    env = {"PACKHAUL_SPARE_NODES": "1", "SLURM_JOB_NUM_NODES": "3", "FAKE_NODES": "gpu07 gpu12 gpu31"}
    unfit = json.dumps({"gpu12": ["GPU 3 is slow"]})
    assert project.train(PACKHAUL_CHECK_NODES="1", FAKE_UNFIT=unfit, FAKE_TRAIN="fails;completes", **env) == 3
    assert len(attempts(project)) == 1


def test_a_check_that_names_no_node_is_not_repeated(project):
    env = {"PACKHAUL_SPARE_NODES": "1", "SLURM_JOB_NUM_NODES": "3", "FAKE_NODES": "gpu07 gpu12 gpu31"}
    assert project.train(PACKHAUL_CHECK_NODES="1", FAKE_CHECK="1", **env) == 1, project.log
    assert len(attempts(project)) == 1 and not project.calls("launch")
    assert "the node check ended with exit code 1 and names no node: a node cannot train" in project.log


def test_a_node_on_which_the_check_could_not_start_and_that_does_not_answer_is_replaced(project):
    spare = {"PACKHAUL_SPARE_NODES": "1", "SLURM_JOB_NUM_NODES": "3", "FAKE_NODES": "gpu07 gpu12 gpu31"}
    lost = {"FAKE_SRUN_ERROR": "srun: error: step creation failed", "FAKE_SINFO": "gpu07|allocated,gpu12|down*"}
    code = project.train(PACKHAUL_CHECK_NODES="1", FAKE_CHECK="167;0", **spare, **lost)
    assert code == 0, project.log
    assert "node gpu12 is left out from now on: it does not answer" in project.log
    trained = [value(call, "--nodelist") for call in project.calls("srun") if "launch" in call["arguments"]]
    assert trained == ["gpu07,gpu31"]


def test_a_job_preempted_during_the_node_check_is_requeued(project):
    env = {"PACKHAUL_CHECK_NODES": "1", "FAKE_CHECK": "143", "FAKE_PREEMPT_TIME": "2026-01-01T00:00:00"}
    assert project.train(**env) == 0, project.log
    assert project.requeued()


@pytest.mark.parametrize(("gpus", "seen"), [("h100:4", ("4", "2")), ("", ("", "2"))])
def test_the_steps_are_told_numbers(project, gpus, seen):
    assert project.train(PACKHAUL_GPUS_PER_NODE=gpus, PACKHAUL_PROCS_PER_NODE="2") == 0, project.log
    for call in project.calls("launch"):
        assert tuple(call["env"][f"PACKHAUL_{name}_PER_NODE"] for name in ("GPUS", "PROCS")) == seen


def test_unfit_nodes_are_excluded_at_the_requeue_where_the_partition_has_others(project):
    env = {"PACKHAUL_CHECK_NODES": "1", "FAKE_UNFIT": json.dumps({"gpu12": ["GPU 3 is slow"]})}
    env["FAKE_EXCLUDED"] = "gpu[01-02]"  # by an option of the person, or at an earlier requeue
    assert project.train(FAKE_SINFO="gpu07,gpu12,gpu31", **env) == 0, project.log
    assert project.requeued()
    updates = [call["arguments"] for call in project.calls("scontrol") if call["arguments"][0] == "update"]
    assert updates == [["update", "JobId=31234", "ExcNodeList=gpu[01-02],gpu12"]]


@pytest.mark.parametrize("others", ["gpu07,gpu12", "gpu12"])
def test_a_job_is_not_requeued_where_it_could_never_start(project, others):
    env = {"PACKHAUL_CHECK_NODES": "1", "FAKE_UNFIT": json.dumps({"gpu12": ["GPU 3 is slow"]})}
    assert project.train(FAKE_SINFO=others, **env) == 1, project.log
    assert not project.requeued()


def test_nodes_are_not_asked_after_a_term_that_ends_them_all(project):
    assert project.train_with_signal(signal.SIGTERM, FAKE_TRAIN="waits,fails") == 3
    assert not [call for call in project.calls("srun") if call["arguments"][-1] == "true"]


def test_a_check_that_fails_everywhere_is_no_matter_of_nodes(project):
    unfit = json.dumps({"gpu07": ["no interface ib7"], "gpu12": ["no interface ib7"]})
    env = {"PACKHAUL_CHECK_NODES": "1", "FAKE_UNFIT": unfit, "FAKE_SINFO": "gpu07,gpu12,gpu31,gpu32"}
    assert project.train(**env) == 1
    assert not project.requeued() and not project.calls("launch")


def test_within_an_allocation_nothing_is_requeued(project):
    script = project.start("run.sh", "--config", "run.yaml", FAKE_TRAIN="waits,is preempted", SLURM_CPUS_PER_TASK="")
    wait_for(project.folder / "training")
    script.send_signal(signal.SIGINT)
    assert script.wait(60) == 85, project.log
    assert "this is no batch job" in project.log and not project.requeued()


def test_within_an_allocation_there_is_no_chain(project):
    (project.folder / "run").mkdir()
    (project.folder / "run/.chain-failed").touch()
    for tries, chain in (("completes", "5"), ("fails", "5")):
        project.run("run.sh", "--config", "run.yaml", FAKE_TRAIN=tries, PACKHAUL_CHAIN=chain)
    assert sorted(path.name for path in (project.folder / "run").glob(".chain*")) == [".chain-failed"]
    assert len(project.calls("launch")) == 4


@pytest.mark.parametrize(("early", "chain"), [("activating", "1"), ("activating", "2"), ("checking", "1")])
def test_after_a_signal_no_training_begins(project, early, chain):
    with (project.folder / "venv" / "bin" / "activate").open("a") as file:
        file.write("touch activating; sleep 0.5\n")
    slow = {"PACKHAUL_CHECK_NODES": "1", "FAKE_CHECK_SECONDS": "20"} if early == "checking" else {}
    script = project.start("train.sbatch", "--config", "run.yaml", PACKHAUL_CHAIN=chain, **slow)
    wait_for(project.folder / early)
    script.send_signal(signal.SIGUSR1)
    started = time.monotonic()
    assert script.wait(30) == 0, project.log
    assert time.monotonic() - started < 15  # the check is not waited for
    assert project.requeued() == (chain == "1") and not project.calls("launch")
    assert not (project.folder / "run/.chain-failed").exists()
