"""Which jobs are requeued or go on as a chain, and which end, without SLURM: scripts run against stand-ins."""

from __future__ import annotations

import json
import signal

import pytest

from tests.support.slurm_stand_ins import directives, plain, value


def test_mistake_11_requeue_is_allowed_and_the_log_is_kept():
    for script in ("train.sbatch", "prepare.sbatch"):
        assert directives(script)["open-mode"] == "append"
        assert "requeue" in directives(script)


@pytest.mark.parametrize(
    ("env", "code", "requeued"),
    [
        ({"FAKE_TRAIN": "waits,is preempted"}, 0, True),
        ({"FAKE_TRAIN": "waits,is preempted", "SLURM_RESTART_COUNT": "49"}, 0, True),
        ({"FAKE_TRAIN": "waits,is preempted", "SLURM_RESTART_COUNT": "50"}, 85, False),  # the cap
        ({"FAKE_TRAIN": "waits,is preempted", "FAKE_REQUEUE": "1"}, 85, True),  # asked for, refused
        ({"FAKE_TRAIN": "waits,completes"}, 0, False),  # the last step was done
        ({"FAKE_TRAIN": "waits,stops"}, 1, False),  # exit 0, nothing saved
    ],
)
def test_mistake_11_requeue_only_after_a_signal_and_a_saved_checkpoint(project, env, code, requeued):
    assert (project.train_with_signal(**env), project.requeued()) == (code, requeued), project.log
    (written,) = project.folder.glob("slurm/logs/*/*-attempt0/decision.json")
    assert json.loads(written.read_text())["decision"].startswith("requeued") == (code == 0 and requeued)


@pytest.mark.parametrize(
    ("env", "code", "requeued"),
    [
        ({}, 0, True),  # a site that sends nothing else
        ({"FAKE_STATE": "PREEMPTED"}, 0, True),
        ({"FAKE_STATE": "COMPLETING", "FAKE_PREEMPT_TIME": "2026-01-01T00:00:00"}, 0, True),
        ({"FAKE_STATE": "COMPLETING", "FAKE_REASON": "TimeLimit"}, 0, True),
        ({"FAKE_STATE": "COMPLETING"}, 85, False),  # scancel by a person
        ({"FAKE_STATE": "CANCELLED"}, 85, False),
    ],
)
def test_term_alone_requeues_unless_a_person_cancelled(project, env, code, requeued):
    found = project.train_with_signal(signal.SIGTERM, FAKE_TRAIN="waits,is preempted", **env)
    assert (found, project.requeued()) == (code, requeued), project.log


@pytest.mark.parametrize(("time", "requeued"), [("2026-01-01T00:00:00", True), ("None", False)])
def test_preemption_that_only_the_training_hears_is_known_from_slurm(project, time, requeued):
    project.train(FAKE_TRAIN="is preempted", FAKE_PREEMPT_TIME=time)
    assert project.requeued() == requeued, project.log


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"FAKE_RESTARTS": "3", "SLURM_RESTART_COUNT": "2"}, "SLURM itself starts this job again"),
        ({"FAKE_STATE": "NODE_FAIL"}, "submit the same command again"),
        ({"FAKE_STATE": "COMPLETING", "FAKE_REASON": "NodeDown"}, "submit the same command again"),
        ({"FAKE_REASON": "NodeDown", "PACKHAUL_CHAIN": "2"}, "the next job of the chain goes on"),
        ({"FAKE_RESTARTS": "1", "PACKHAUL_CHAIN": "2"}, "SLURM itself starts this job again"),
    ],
)
def test_a_node_that_failed_is_no_failure_of_the_training(project, env, message):
    assert project.train(FAKE_TRAIN="fails", **env) == 3
    assert message in project.log and "training failed" not in project.log
    assert not (project.folder / "run/.chain-failed").exists()


def test_an_attempt_that_slurm_restarts_is_not_requeued_again(project):
    assert project.train_with_signal(FAKE_TRAIN="waits,is preempted", FAKE_RESTARTS="1") == 0
    assert "SLURM itself starts this job again" in project.log and not project.requeued()


def forget_the_training(project):
    """As in a folder in which no job has trained."""
    (project.folder / "training").unlink()
    (project.folder / "signalled").unlink()


def test_in_a_chain_the_next_job_goes_on_instead_of_a_requeue(project):
    chain = {"PACKHAUL_CHAIN": "3", "FAKE_TRAIN": "waits,is preempted"}
    assert project.train_with_signal(PACKHAUL_CHAIN_INDEX="1", **chain) == 0
    forget_the_training(project)
    assert project.train(PACKHAUL_CHAIN="3", PACKHAUL_CHAIN_INDEX="2", FAKE_TRAIN="completes") == 0
    started = len(project.calls("launch"))
    assert project.train(PACKHAUL_CHAIN="3", PACKHAUL_CHAIN_INDEX="3", FAKE_TRAIN="fails") == 0
    assert len(project.calls("launch")) == started
    assert "an earlier job of this chain has finished the training" in project.log
    assert not project.requeued()


def test_a_chain_ends_at_a_failure_and_says_when_it_was_too_short(project):
    assert project.train(PACKHAUL_CHAIN="2", PACKHAUL_CHAIN_INDEX="1", FAKE_TRAIN="fails") == 3
    assert project.train(PACKHAUL_CHAIN="2", PACKHAUL_CHAIN_INDEX="2") == 1
    assert "an earlier job of this chain has failed" in project.log
    (project.folder / "training").unlink()
    again = {"PACKHAUL_CHAIN": "2", "FAKE_TRAIN": "waits,is preempted"}
    # Submitted again: the failure is forgotten.
    assert project.train_with_signal(PACKHAUL_CHAIN_INDEX="1", **again) == 0
    forget_the_training(project)
    assert project.train_with_signal(PACKHAUL_CHAIN_INDEX="2", **again) == 85
    assert "this was the last job of the chain" in project.log


def test_a_chain_is_submitted_as_jobs_of_one_name(project):
    arguments = ["prepare", "--recipe", "run.yaml", "--output", "s", "then", "train", "--config", "run.yaml"]
    arguments += ["then", "export", "--checkpoint", "run", "--output", "out"]
    assert project.run("submit.sh", *arguments, PACKHAUL_CHAIN="2") == 0, project.log
    calls = project.calls("sbatch")
    assert [value(call, "--dependency") for call in calls[1:]] == [
        "afterok:101,singleton",
        "afterok:101,singleton",
        "afterok:103",
    ]
    assert len({value(call, "--job-name") for call in calls[1:3]}) == 1
    assert [plain(call["arguments"])[-3:] for call in calls[1:3]] == [
        ["slurm/train.sbatch", "--config", "run.yaml"]
    ] * 2
    exports = [a for call in calls[1:3] for a in plain(call["arguments"]) if a.startswith("--export")]
    assert exports[0].startswith("--export=ALL") and ",PACKHAUL_CHAIN_INDEX=1" in exports[0]
    assert ",PACKHAUL_CHAIN_BEFORE=102,PACKHAUL_CHAIN_INDEX=2" in exports[1]


@pytest.mark.parametrize(("what", "code"), [("is preempted", 85), ("fails", 3), ("stops", 1), ("completes", 0)])
def test_mistake_11_no_requeue_without_a_signal(project, what, code):
    assert (project.train(FAKE_TRAIN=what), project.requeued()) == (code, False), project.log


def test_mistake_11_the_mark_of_an_earlier_attempt_does_not_count(project):
    (project.folder / "run").mkdir()
    (project.folder / "run" / "preempted.json").write_text("{}")
    assert project.train_with_signal(FAKE_TRAIN="waits,stops") == 1
    assert not project.requeued()
