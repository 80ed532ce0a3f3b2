"""Which rank a hang is about: it no longer answers, is behind the others, or does not wait while they do."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from train.run.rank_states import RankState

SILENT = "it no longer answers (stopped, dead, blocked outside Python, or its node is lost)"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The ranks that hang; none where they cannot be told from the others."""

    ranks: list[int]
    reason: str
    silent: bool = False


def find(states: dict[int, RankState | None], silent: list[int]) -> Verdict:
    """The ranks that the others wait for.

    Args:
        states: of all ranks, those that do not answer included; None: it never wrote any.
        silent: the ranks that do not answer.
    """
    if silent:
        return Verdict(ranks=silent, reason=SILENT, silent=True)
    known = [state for state in states.values() if state]
    furthest = max(known, key=lambda state: state.position)
    behind = [state for state in known if state.position < furthest.position]
    if behind:
        first = min(state.position for state in behind)
        return _alive([s for s in behind if s.position == first], f"others are in {place(furthest)} already")
    busy = [state for state in known if not state.waits]
    if len(known) == 1 or 0 < len(busy) < len(known):
        return _alive(busy or known, "")
    return Verdict(ranks=[], reason=f"none stands out, rank {known[0].rank} is at {known[0].where}")


def _alive(states: list[RankState], reason: str) -> Verdict:
    """Ranks whose main thread can be looked at."""
    parts = [f"it is at {states[0].where}" if states[0].where else "", reason]
    return Verdict(ranks=[state.rank for state in states], reason="; ".join(filter(None, parts)))


def place(state: RankState) -> str:
    """Phase, step and part in words."""
    texts = {
        "start": "the start",
        "step": f"step {state.step:,}",
        "save": f"the save after step {state.step:,}",
        "evaluation": f"the evaluation after step {state.step:,}",
    }
    part = f" ({state.part})" if state.part else ""
    return texts[state.phase] + part


def line(verdict: Verdict, states: dict[int, RankState | None], judge: RankState, now: float) -> str:
    """One line for the log: who hangs, where, since when, and how that is known.

    Args:
        judge: the state of the rank that says it.
        now: in epoch seconds.
    """
    if not verdict.ranks:
        return f"all ranks hang: {_when(judge, judge.waited)}; {verdict.reason}: look at the network and the GPUs"
    first = about(verdict, states, judge)
    if first is None:
        return f"{_who(verdict.ranks)} has not been heard of since the start, {judge.waited:.0f} s; {verdict.reason}"
    seconds = max(now - first.since, 0.0) if verdict.silent else first.waited
    same_host = [rank for rank in verdict.ranks if (state := states[rank]) and state.host == first.host]
    others = sorted(set(verdict.ranks) - set(same_host))
    more = f" (and {_who(others)} elsewhere)" if others else ""
    verb = "hangs" if len(same_host) == 1 else "hang"
    return f"{_who(same_host)} on {first.host} {verb}{more}: {_when(first, seconds)}; {verdict.reason}"


def about(verdict: Verdict, states: dict[int, RankState | None], judge: RankState) -> RankState | None:
    """What is known of the first rank that hangs; None where nothing is.

    The last beat of a rank that no longer answers may be some steps old: it came as far as where the others wait for
    it, though not into which part.
    """
    first = states[verdict.ranks[0]] if verdict.ranks else judge
    if first is None or not verdict.silent or first.position >= judge.position:
        return first
    return replace(judge, rank=first.rank, host=first.host, part="")


def _when(state: RankState, seconds: float) -> str:
    return f"in {place(state)} since {time.strftime('%H:%M:%S', time.localtime(state.since))}, {seconds:,.0f} s"


def _who(ranks: list[int]) -> str:
    """Such as "ranks 8-11, 14"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(texts)}"
