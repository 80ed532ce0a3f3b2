"""A flag that a command does not know is refused with the nearest one that it knows."""

from __future__ import annotations

import pytest

from packhaul.command import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("prepare --recipe a --output b --num_wokers 2", "--num_wokers: did you mean --num-workers?"),
        ("inspect a --rws=1", "--rws: did you mean --rows?"),
        ("generate --model a --promt hi", "--promt: did you mean --prompt?"),
        ("checkpoint prune a --keep 2 --dryrun", "--dryrun: did you mean --dry-run?"),
        ("diff a b --zzz", "unrecognized arguments: --zzz\n"),
    ],
)
def test_the_nearest_flag_is_named(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2 and said in capsys.readouterr().err
