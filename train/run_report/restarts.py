"""The starts of a run: what ended each, and the time lost until the next one had made its first step.

Lost is the time from the state that a start went on from to its first step: steps trained again, waiting for a machine,
and starting. Nothing is counted twice where a start made no progress, and no waiting after an end that was wanted.
"""

from __future__ import annotations

import time
from typing import Any

from train.run.starts import COMPLETE, INTERRUPTED, SAVED

_WANTED = (COMPLETE, INTERRUPTED)
_MOST = 400  # characters of a message
_NO_WORD = "ended without a word: killed (SIGKILL, host memory), or its machine went down"


def restarts(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the template shows.

    Args:
        starts: of train.run.starts, with what was left behind as `found`.

    Returns:
        rows, one a start: number, began, host, job, processes, first and last step, ended, again (steps that the next
        start trains again), lost, waiting, starting, repeating (seconds; None where unknown); lost: seconds in all.
    """
    readable = [start for start in starts if "problem" not in start]
    rows = [_row(start, is_last=start is readable[-1]) for start in readable]
    for before, now, row, earlier in zip(readable, readable[1:], rows[1:], rows, strict=False):
        row |= _lost(before, now)
        if "from_step" in now and earlier["last"] is not None:
            earlier["last"] = max(earlier["last"], now["from_step"])  # it was saved after the last note
            earlier["again"] = earlier["last"] - now["from_step"]
    problems = [start["problem"] for start in starts if "problem" in start]
    return {"rows": rows, "lost": sum(row.get("lost") or 0.0 for row in rows), "problems": problems}


def _row(start: dict[str, Any], *, is_last: bool) -> dict[str, Any]:
    job = f"job {start['job']}" if start.get("job") else ""
    again = f", restart {start['restart']}" if job and start.get("restart") else ""
    return {
        "number": start["number"],
        "began": _clock(start.get("began")),
        "host": start.get("host"),
        "job": f"{job}{again}",
        "processes": start.get("processes"),
        "first": start.get("from_step"),
        "last": start.get("step"),
        "ended": ended(start, is_last=is_last),
        "at": _clock(_end(start)),
    }


def ended(start: dict[str, Any], *, is_last: bool) -> str:
    """How a start ended, in words.

    Args:
        is_last: it may still run.
    """
    own, found = start.get("ended") or {}, start.get("found") or {}
    how, said, cause = own.get("how"), str(own.get("said") or ""), found.get("cause")
    if how == COMPLETE:
        return "finished"
    if how == INTERRUPTED:
        return "Ctrl-C: checkpoint saved"
    if how == SAVED:
        text = f"stopped by {said}: checkpoint saved"
    elif how and not own.get("consequence"):
        text = f"{how}: {said}"
    else:
        text = cause or said or ("has not ended, or was killed" if is_last else _NO_WORD)
    slurm = "SLURM preempted the job" if found.get("slurm") == "preempted" else ""
    return "; ".join(filter(None, (shortened(text), slurm, str(found.get("decision") or ""))))


def shortened(message: str) -> str:
    """An error without its traceback, which follows an empty line."""
    text = message.strip().partition("\n\n")[0].rstrip(".")
    return text if len(text) <= _MOST else f"{text[:_MOST]} …"


def _lost(before: dict[str, Any], now: dict[str, Any]) -> dict[str, float | None]:
    """Seconds between two starts."""
    began, first = now.get("began"), now.get("first_step")
    if began is None:
        return {}
    was_wanted = (before.get("ended") or {}).get("how") in _WANTED
    since = max(now.get("state_saved") or 0.0, before.get("first_step") or before.get("began") or 0.0)
    lost = max((first or began) - (max(since, began) if was_wanted else since), 0.0)
    end = _end(before)
    waiting = None if end is None or was_wanted else max(began - max(end, since), 0.0)
    starting = None if first is None else max(first - began, 0.0)
    known = waiting is not None and starting is not None
    return {
        "lost": lost,
        "waiting": waiting,
        "starting": starting,
        "repeating": max(lost - (waiting or 0.0) - (starting or 0.0), 0.0) if known else None,
    }


def _end(start: dict[str, Any]) -> float | None:
    """When it ended, or was last heard of."""
    found = (start.get("ended") or {}).get("time") or start.get("alive")
    return float(found) if found else None


def _clock(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration(seconds: float | None) -> str:
    """For people."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"
