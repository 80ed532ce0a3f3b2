"""What follows an attempt, and how SLURM's answers are read: recorded ones, without a cluster."""

from __future__ import annotations

import itertools

import pytest

from slurm.jobs import answers, decision
from slurm.jobs.answers import CANCELLED, GAVE_UP, PREEMPTED, RESTARTS, RUNS
from slurm.jobs.decision import AGAIN, END, FAILED, NODE_LOST, REFUSED, REQUEUE, SAVED, UNFIT, Facts, decide

# Of SLURM 22.05 and 23.11: `scontrol --oneliner show job`, shortened at the end.
RUNNING = (
    "JobId=31234 JobName=train-my run=2 UserId=ann(1000) GroupId=lab(1000) MCS_label=N/A Priority=4294901759 Nice=0 "
    "Account=(null) QOS=(null) JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts={restarts} "
    "BatchFlag=1 Reboot=0 ExitCode=0:0 TimeLimit=00:10:00 SubmitTime=2026-11-26T10:00:00 PreemptEligibleTime="
    "2026-11-26T10:00:01 PreemptTime={preempted} SuspendTime=None Partition=main NodeList=node[1-2] BatchHost=node1 "
    "Command=/home/ann/my runs/slurm/train.sbatch --config run.yaml Comment=see Reason=none"
)


def answer(state="RUNNING", reason="None", restarts=0, preempted="None"):
    text = RUNNING.format(restarts=restarts, preempted=preempted)
    return text.replace("JobState=RUNNING Reason=None", f"JobState={state} Reason={reason}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (answer(), RUNS),
        (answer(restarts=1), RESTARTS),
        (answer("COMPLETING", restarts=1, preempted="2026-11-26T10:00:09"), RESTARTS),
        (answer("NODE_FAIL"), GAVE_UP),
        (answer("COMPLETING", "NodeDown"), GAVE_UP),
        (answer("COMPLETING", preempted="2026-11-26T10:00:09"), PREEMPTED),
        (answer("RUNNING", preempted="2026-11-26T10:00:09"), PREEMPTED),
        (answer("CANCELLED"), CANCELLED),
        (answer("COMPLETING"), CANCELLED),
        (answer("COMPLETING", "TimeLimit"), RUNS),
        (answer("RUNNING", preempted="Unknown"), RUNS),
        ("", RUNS),
    ],
)
def test_what_slurm_says_of_a_job(text, said):
    assert answers.job_state(text, 0) == said


def test_fields_with_blanks_and_equals_signs():
    job = answers.fields(answer())
    assert (job["JobName"], job["JobState"], job["NodeList"]) == ("train-my run=2", "RUNNING", "node[1-2]")
    assert job["Command"] == "/home/ann/my runs/slurm/train.sbatch --config run.yaml"
    assert job["Reason"] == "None"  # and not that of the comment


def test_nodes_that_are_lost():
    # sinfo --noheader --Node --format "%N|%T": a line for each partition of a node.
    text = "gpu01|allocated\ngpu02|allocated*\ngpu02|allocated*\ngpu03|down*\ngpu04|down\ngpu05|draining\n"
    text += "gpu06|mixed\ngpu07|failing\ngpu08|idle~\ngpu09|mixed#\ngpu10|allocated+not_responding\n"
    assert answers.lost_nodes(text) == ["gpu02", "gpu03", "gpu04", "gpu07", "gpu10"]


@pytest.mark.parametrize(("listed", "found"), [("gpu[07,12]", ["gpu[07,12]"]), ("(null)", []), ("", [])])
def test_nodes_that_a_job_must_not_get(listed, found):
    text = answer().replace("BatchHost", f"ExcNodeList={listed} BatchHost")
    assert answers.excluded_nodes(text) == found


def test_the_patience_of_slurm():
    config = "SlurmdSyslogDebug       = (null)\nSlurmdTimeout           = 300 sec\nMaxArraySize            = 1001\n"
    assert (answers.slurmd_timeout(config), answers.setting(config, "MaxArraySize")) == (300, "1001")
    assert answers.slurmd_timeout("") == 300


@pytest.mark.parametrize(
    ("facts", "what", "code"),
    [
        (Facts(decision.COMPLETE), END, 0),
        (Facts(decision.UNFINISHED), END, 1),
        # Stopped with a checkpoint.
        (Facts(SAVED, asked=True), REQUEUE, 0),
        (Facts(SAVED, PREEMPTED), REQUEUE, 0),
        (Facts(SAVED), END, 85),  # a signal to the training alone
        (Facts(SAVED, stale=True), REQUEUE, 0),
        (Facts(SAVED, stale=True, restarts_left=0), END, 85),
        (Facts(SAVED, CANCELLED, stale=True), END, 85),
        (Facts(SAVED, stale=True, chain=True), END, 0),
        (Facts(SAVED, RESTARTS, asked=True), END, 0),
        (Facts(SAVED, CANCELLED, asked=True), END, 85),
        (Facts(SAVED, asked=True, restarts_left=0), END, 85),
        (Facts(SAVED, asked=True, batch=False), END, 85),
        (Facts(SAVED, asked=True, chain=True), END, 0),
        (Facts(SAVED, asked=True, last_of_chain=True), END, 85),
        (Facts(SAVED, GAVE_UP, asked=True), REQUEUE, 0),
        # Asked before there was a training.
        (Facts(decision.NOT_BEGUN, asked=True), REQUEUE, 0),
        (Facts(decision.NOT_BEGUN, CANCELLED, asked=True), END, 85),
        (Facts(decision.NOT_BEGUN, asked=True, restarts_left=0), END, 85),
        (Facts(decision.NOT_BEGUN, asked=True, chain=True), END, 0),
        # Refused, or no failure of the training.
        (Facts(REFUSED, progress=True, failures_left=3), END, 2),
        (Facts(decision.PORT_TAKEN), AGAIN, None),
        (Facts(FAILED, RESTARTS, progress=True), END, None),
        (Facts(FAILED, CANCELLED, progress=True), END, None),
        # Nodes.
        (Facts(NODE_LOST, spare=True), AGAIN, None),
        (Facts(NODE_LOST, GAVE_UP, spare=True), END, None),  # SLURM has ended the job
        (Facts(NODE_LOST, progress=True, failures_left=2), END, None),  # too few nodes are left for it
        (Facts(NODE_LOST, chain=True), END, None),
        (Facts(NODE_LOST, GAVE_UP, others=True), END, None),
        (Facts(NODE_LOST, others=True), REQUEUE, 0),
        (Facts(UNFIT, others=True), REQUEUE, 0),
        (Facts(UNFIT, others=True, restarts_left=0), END, 1),
        (Facts(UNFIT, others=True, batch=False), END, 1),
        (Facts(UNFIT, others=True, last_of_chain=True), END, 1),
        (Facts(UNFIT, progress=True, failures_left=2), END, 1),
        # Preempted before anything was saved.
        (Facts(FAILED, PREEMPTED, asked=True), REQUEUE, 0),
        (Facts(UNFIT, PREEMPTED, asked=True), REQUEUE, 0),
        (Facts(UNFIT, PREEMPTED, chain=True), END, None),
        (Facts(UNFIT, PREEMPTED, last_of_chain=True), END, 1),
        (Facts(FAILED, PREEMPTED, restarts_left=0, asked=True), END, None),
        (Facts(UNFIT), END, 1),
        # Errors of the training.
        (Facts(FAILED), END, None),
        (Facts(FAILED, progress=True), AGAIN, None),
        (Facts(FAILED, progress=True, batch=False), AGAIN, None),
        (Facts(FAILED, failures_left=1), AGAIN, None),
        (Facts(FAILED, progress=True, asked=True), END, None),  # the time is up
    ],
)
def test_what_follows(facts, what, code):
    found = decide(facts)
    assert (found.what, found.code) == (what, code), found.said


def test_a_chain_is_broken_by_a_failure_and_by_a_person_and_by_nothing_else():
    breaking = {
        (ended, slurm)
        for ended, slurm in itertools.product(ENDED, STATES)
        if decide(Facts(ended, slurm, chain=True)).breaks_chain
    }
    expected = {(FAILED, slurm) for slurm in STATES if slurm not in (RESTARTS, PREEMPTED)}
    expected |= {(ended, slurm) for ended in (REFUSED, decision.UNFINISHED) for slurm in STATES}
    cancelled = {(ended, CANCELLED) for ended in (*decision.STOPPED, NODE_LOST, UNFIT, decision.PORT_TAKEN)}
    assert breaking == expected | cancelled


ENDED = [
    *[
        decision.COMPLETE,
        *decision.STOPPED,
        decision.UNFINISHED,
        REFUSED,
        decision.PORT_TAKEN,
        FAILED,
        NODE_LOST,
        UNFIT,
    ],
]
STATES = [RUNS, RESTARTS, CANCELLED, GAVE_UP, PREEMPTED]


def test_the_table_has_a_line_for_everything():
    flags = ("asked", "batch", "chain", "last_of_chain", "progress", "stale", "spare", "others")
    for ended, slurm in itertools.product(ENDED, STATES):
        for values in itertools.product((False, True), repeat=len(flags)):
            for left in (0, 1):
                facts = Facts(
                    ended, slurm, restarts_left=left, failures_left=left, **dict(zip(flags, values, strict=True))
                )
                found = decide(facts)
                assert found.what in (END, AGAIN, REQUEUE) and found.said
                if found.what == REQUEUE:  # never past its limit, in a chain of which another job goes on, or by hand
                    assert facts.restarts_left and facts.batch and not (facts.chain or facts.last_of_chain)
                if found.what == AGAIN:  # never without a limit, and never with too few nodes
                    bounded = ended == decision.PORT_TAKEN or facts.progress or facts.failures_left
                    assert facts.spare if ended == NODE_LOST else bounded
                    assert ended != UNFIT and not facts.asked
                if slurm in (RESTARTS, CANCELLED):
                    assert found.what == END


def test_every_line_of_the_table_is_reached():
    flags = ("asked", "batch", "chain", "last_of_chain", "progress", "stale", "spare", "others")
    reached = set()
    for ended, slurm, left in itertools.product(ENDED, STATES, (0, 1)):
        for values in itertools.product((False, True), repeat=len(flags)):
            facts = Facts(ended, slurm, restarts_left=left, failures_left=left, **dict(zip(flags, values, strict=True)))
            reached.add(decide(facts))
    assert reached == {follows for *_, follows in decision.TABLE}
