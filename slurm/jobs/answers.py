"""What SLURM says: its commands' answers, read. tests/slurm has recorded ones."""

import os
import re
import signal
import subprocess

from slurm.jobs.words import Refusal

_FIELD = re.compile(r"(?:^|\s)([A-Z][\w/:.]*)=")
# What SLURM says of a job whose processes have ended, or are being ended.
RUNS, RESTARTS, CANCELLED, GAVE_UP, PREEMPTED = "runs", "restarts", "cancelled", "gave up", "preempted"
_UNSET = ("", "None", "Unknown", "(null)")
_LOST = ("down", "fail", "failing", "unknown", "powered_down", "powering_down", "not_responding")


def _spare_signals():
    """In a child: what asks the training to stop must not end what only asks, such as the scontrol of a requeue."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def finished(command, timeout=None, env=None):
    """(exit code, output, errors) of a command; 124 where it has not ended after `timeout` seconds, 127 where it does
    not start. Bytes that are no text in this locale stay what they are.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            preexec_fn=_spare_signals,
            start_new_session=True,
        )
    except OSError as error:
        return 127, "", str(error)
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return 124, "", "{} has not ended after {} s".format(command[0], timeout)
    finally:
        if process.returncode is None:  # with its own children, which hold the pipes
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, os.fsdecode(out), os.fsdecode(errors)


def ask(*command, timeout=60, env=None):
    """(exit code, output, errors) of one of SLURM's commands, see `finished`."""
    return finished(command, timeout, env)


def show_job(job_id):
    """(exit code, `scontrol --oneliner show job ID`)."""
    code, out, _ = ask("scontrol", "--oneliner", "show", "job", job_id)
    return code, out


def fields(text):
    """The fields of `scontrol --oneliner show`: values may hold blanks, and '=' within a word."""
    marks = list(_FIELD.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    found = {}
    for mark, end in zip(marks, ends):
        found.setdefault(mark.group(1), text[mark.end() : end].strip())  # a comment may look like a field
    return found


def job_state(text, restart_count):
    """What SLURM makes of the job, one of the words above.

    Args:
        text: `scontrol --oneliner show job ID`.
        restart_count: restarts when this attempt began.
    """
    job = fields(text)
    state, reason = job.get("JobState", ""), job.get("Reason", "")
    if job.get("Restarts", "").isdigit() and int(job["Restarts"]) > restart_count:
        return RESTARTS  # a node has failed, or scontrol requeue was used
    if state == "NODE_FAIL" or reason == "NodeDown":
        return GAVE_UP  # as it does where jobs may not be requeued
    if job.get("PreemptTime", "None") not in _UNSET:
        return PREEMPTED  # TERM goes to the training processes alone
    if state == "CANCELLED" or (state == "COMPLETING" and reason != "TimeLimit"):
        return CANCELLED  # SLURM says COMPLETING while the processes end, as after a time limit
    return RUNS


def excluded_nodes(text):
    """The list of nodes that the job must not get, as one word, such as gpu[07,12]; an update would replace it.

    Args:
        text: `scontrol --oneliner show job ID`.
    """
    found = fields(text).get("ExcNodeList", "")
    return [] if found in _UNSET else [found]


def lost_nodes(text):
    """The nodes that SLURM does not hear or has given up.

    Args:
        text: `sinfo --noheader --Node --format "%N|%T"`.
    """
    lost = []
    for line in text.splitlines():
        name, _, state = line.strip().partition("|")
        words = re.split(r"[+\s]", state.lower())
        if name not in lost and ("*" in state or any(word.rstrip("*$~#!%@^-") in _LOST for word in words)):
            lost.append(name)
    return lost


def setting(text, name):
    """A line of `scontrol show config`."""
    found = re.search(r"^{}\s*=\s*(.*?)\s*$".format(re.escape(name)), text, re.MULTILINE)
    return found.group(1) if found else ""


def slurmd_timeout(config):
    """Seconds after which SLURM takes a silent node for dead."""
    found = re.match(r"\d+", setting(config, "SlurmdTimeout"))
    return int(found.group()) if found else 300


def overlap():
    """The flag that lets a step begin while an earlier one still ends, such as one whose node has died: it would wait
    for that one's CPUs and memory, maybe for ever. Before SLURM 20.11 steps did so by themselves."""
    _, out, _ = ask("srun", "--version")
    found = re.search(r"(\d+)\.(\d+)", out)
    return ["--overlap"] if found and (int(found.group(1)), int(found.group(2))) >= (20, 11) else []


def host_names(node_list):
    """The names in a list such as gpu[07,12].

    Raises:
        Refusal: scontrol does not tell.
    """
    code, out, errors = ask("scontrol", "show", "hostnames", node_list)
    if code or not out.strip():
        raise Refusal("scontrol show hostnames {}: {}".format(node_list, errors.strip() or "no answer"))
    return out.split()
