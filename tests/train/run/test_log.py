"""Which rank says a line, and where it goes."""

from __future__ import annotations

import logging

import pytest

from data_prep.program_name import speaker
from train.run import log, preemption

LOGGER = logging.getLogger("train.checkpoint.saving")


def test_lines_go_to_the_streams_of_the_moment_and_come_once(capsys):
    log.set_up()
    log.set_up()
    LOGGER.info("saved")
    LOGGER.warning("full")
    LOGGER.error("refused")
    said = capsys.readouterr()
    assert said.out == "sft: saved\n"
    assert said.err == "sft: WARNING: full\nsft: error: refused\n"


def test_a_process_that_packhaul_train_has_launched_speaks_as_it(monkeypatch, capsys):
    log.set_up()
    monkeypatch.setenv("PACKHAUL_STARTED_AS", "packhaul train")
    LOGGER.info("saved")
    preemption._tell("Ctrl-C")
    assert capsys.readouterr().out == "packhaul train: saved\n"
    assert speaker("train.export") == "export"


def test_a_handler_of_the_root_logger_does_not_repeat_them(capsys):
    log.set_up()
    root = logging.getLogger()
    added = logging.StreamHandler()
    root.addHandler(added)
    try:
        LOGGER.warning("full")
    finally:
        root.removeHandler(added)
    assert capsys.readouterr().err == "sft: WARNING: full\n"


@pytest.mark.parametrize(("rank", "said"), [("0", ["mine", "of one rank"]), ("1", ["of one rank"])])
def test_the_first_rank_speaks_for_all(rank, said, monkeypatch, capsys):
    log.set_up()
    monkeypatch.setenv("RANK", rank)
    LOGGER.warning("mine")
    LOGGER.warning("of one rank", extra=log.ANY_RANK)
    assert capsys.readouterr().err.splitlines() == [f"sft: WARNING: {line}" for line in said]
