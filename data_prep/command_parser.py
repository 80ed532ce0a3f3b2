"""The parser of every command's flags: argparse's, which proposes the nearest of a flag that it does not know."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """argparse's parser, which names the nearest flag of one that it does not know."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2, after the usage and a line."""
        _, found, unknown = message.partition("unrecognized arguments: ")
        super().error(message + "".join(_nearest(self, word) for word in unknown.split()) if found else message)


def _nearest(parser: argparse.ArgumentParser, word: str) -> str:
    flag = word.partition("=")[0]
    near = difflib.get_close_matches(flag, _flags(parser), n=1) if flag.startswith("--") else []
    return f"; {flag}: did you mean {near[0]}?" if near else ""


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """Those of its subcommands too."""
    inner = [a.choices.values() for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [*parser._option_string_actions, *(flag for some in inner for one in some for flag in _flags(one))]
