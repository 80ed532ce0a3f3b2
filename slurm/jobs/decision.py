"""What follows an attempt: the first line of TABLE that fits.

How it ended x what SLURM says of the job x whether the job is one of a chain, and what is left of its limits.
"""

from typing import NamedTuple

from slurm.jobs.answers import CANCELLED, GAVE_UP, PREEMPTED, RESTARTS

# How an attempt ended.
COMPLETE = "complete"  # the model is there
SAVED = "saved"  # stopped by a signal, with a checkpoint
NOT_BEGUN = "not begun"  # asked to stop before the training has begun
UNFINISHED = "unfinished"  # exit code 0, and neither
REFUSED = "refused"  # exit code 2: something has to be changed first
PORT_TAKEN = "port taken"  # another process has bound the port since it was found free
FAILED = "failed"
NODE_LOST = "node lost"  # failed, and a node no longer answers
UNFIT = "unfit"  # the node check has failed: too few nodes are left, or it could name none

STOPPED = (SAVED, NOT_BEGUN)

# What follows.
END, REQUEUE, AGAIN = "end", "requeue", "again"

PREEMPTED_CODE = 85  # stopped, the checkpoint is saved, but nothing goes on by itself


class Facts(NamedTuple):
    """What is known at the end of an attempt."""

    ended: str
    slurm: str = "runs"
    asked: bool = False  # a signal has asked this script to stop
    batch: bool = True  # a batch job; else within somebody's allocation
    chain: bool = False  # a later job of the chain goes on
    last_of_chain: bool = False
    restarts_left: int = 1
    failures_left: int = 0  # further failures in a row without a new checkpoint that are outlived
    progress: bool = False  # the attempt has left a new checkpoint
    stale: bool = (
        False  # SLURM has restarted this job a moment ago: it may deliver an earlier step's signals to this one
    )
    spare: bool = False  # this attempt has lost nodes, and enough are left in the allocation
    others: bool = False  # the partition has enough nodes without the excluded ones


class Follows(NamedTuple):
    """What to do, and what to say of it."""

    what: str
    code: "object"  # exit code; None: that of the training
    said: str
    breaks_chain: bool = False


def _always(facts):
    return True


def _may_requeue(facts):
    """A job of a chain is never requeued."""
    return facts.batch and facts.restarts_left > 0 and not (facts.chain or facts.last_of_chain)


_FAILURES = (FAILED, NODE_LOST, UNFIT, PORT_TAKEN)

# (how it ended, what SLURM says, a condition, what follows); () stands for any.
TABLE = (
    ((COMPLETE,), (), _always, Follows(END, 0, "training is complete")),
    ((UNFINISHED,), (), _always, Follows(END, 1, "training exited with 0 without reaching its end", True)),
    # Stopped: another attempt goes on from the newest checkpoint.
    (STOPPED, (RESTARTS,), _always, Follows(END, 0, "SLURM itself starts this job again")),
    (STOPPED, (CANCELLED,), _always, Follows(END, PREEMPTED_CODE, "not requeued: the job was cancelled", True)),
    (
        STOPPED,
        (),
        lambda facts: not facts.batch,
        Follows(END, PREEMPTED_CODE, "not requeued: this is no batch job; run the same command again"),
    ),
    (STOPPED, (), lambda facts: facts.chain, Follows(END, 0, "the next job of the chain goes on")),
    (
        STOPPED,
        (),
        lambda facts: facts.last_of_chain,
        Follows(
            END, PREEMPTED_CODE, "this was the last job of the chain (PACKHAUL_CHAIN): submit the same command again"
        ),
    ),
    (
        STOPPED,
        (),
        lambda facts: facts.stale and not facts.asked and _may_requeue(facts),
        Follows(REQUEUE, 0, "requeued, as the signal may have been meant for the attempt before"),
    ),
    (
        STOPPED,
        (),
        lambda facts: not facts.asked and facts.slurm != PREEMPTED,
        Follows(
            END,
            PREEMPTED_CODE,
            "not requeued: the signal went to the training processes and not to this script (scancel --batch "
            "--signal=USR1)",
        ),
    ),
    (
        STOPPED,
        (),
        lambda facts: facts.restarts_left < 1,
        Follows(END, PREEMPTED_CODE, "not requeued: PACKHAUL_MAX_RESTARTS restarts are used up"),
    ),
    (STOPPED, (), _always, Follows(REQUEUE, 0, "requeued")),
    # Somebody wants the end, or has to change something.
    ((REFUSED,), (), _always, Follows(END, 2, "training refused to start, not requeued: change what it names", True)),
    (_FAILURES, (RESTARTS,), _always, Follows(END, None, "SLURM itself starts this job again")),
    (_FAILURES, (CANCELLED,), _always, Follows(END, None, "not requeued: the job was cancelled", True)),
    # SLURM takes the nodes back while the job is starting or saving: no error of the training.
    (
        _FAILURES,
        (PREEMPTED,),
        lambda facts: facts.chain,
        Follows(END, None, "preempted, nothing saved: the next job of the chain goes on"),
    ),
    (
        _FAILURES,
        (PREEMPTED,),
        _may_requeue,
        Follows(REQUEUE, 0, "preempted, nothing saved: requeued"),
    ),
    (
        (PORT_TAKEN,),
        (),
        lambda facts: not facts.asked,
        Follows(AGAIN, None, "the port was taken meanwhile: another one"),
    ),
    # A node is to blame, where one can be left out.
    (
        (NODE_LOST,),
        (),
        lambda facts: facts.spare and not facts.asked and facts.slurm != GAVE_UP,
        Follows(AGAIN, None, "training again on the nodes that are left"),
    ),
    (
        (NODE_LOST, UNFIT),
        (),
        lambda facts: facts.chain,
        Follows(END, None, "a node has failed: the next job of the chain goes on"),
    ),
    (
        (NODE_LOST,),
        (GAVE_UP,),
        _always,
        Follows(END, None, "a node has failed, and SLURM does not start this job again: submit the same command again"),
    ),
    (
        (NODE_LOST, UNFIT),
        (),
        lambda facts: facts.others and _may_requeue(facts),
        Follows(REQUEUE, 0, "requeued without the nodes named above"),
    ),
    ((UNFIT,), (), _always, Follows(END, 1, "a node cannot train", True)),
    (
        (NODE_LOST,),
        (),
        _always,
        Follows(END, None, "a node no longer answers, and no other takes its place: submit the same command again"),
    ),
    # An error of the training.
    (
        (FAILED,),
        (),
        lambda facts: not facts.asked and (facts.progress or facts.failures_left > 0),
        Follows(AGAIN, None, "training again in this allocation, from the newest checkpoint"),
    ),
    ((FAILED, PORT_TAKEN), (), _always, Follows(END, None, "training failed, not requeued", True)),
)


def decide(facts):
    """What follows."""
    for ended, slurm, condition, follows in TABLE:
        if facts.ended in ended and (not slurm or facts.slurm in slurm) and condition(facts):
            return follows
    raise AssertionError("no line of the table fits {}".format(facts))
