"""How a job speaks: lines for its log, and refusals that end it."""

import contextlib
import os
import shlex
import sys
import time


class Refusal(Exception):
    """Ends the program with a message and an exit code."""

    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


def say(text):
    """A line in the job's log, with the time. Also from a signal handler, which must not use a buffer."""
    line = "packhaul {}: {}\n".format(time.strftime("%Y-%m-%d %H:%M:%S"), text)
    with contextlib.suppress(OSError):  # a full disk must not end a job that can still be requeued
        os.write(1, line.encode("utf-8", "replace"))


def complain(text):
    """A line on standard error."""
    sys.stdout.flush()
    print("packhaul: {}".format(text), file=sys.stderr, flush=True)


def tell(text):
    """A line for a person at a terminal; programs that read standard error do not get it."""
    if sys.stderr.isatty():
        complain(text)


def make_folder(path):
    """Make it where it is not there.

    Raises:
        Refusal: it cannot be made, or not written to.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise Refusal("{} cannot be made: {}: name a folder of your own".format(path, error.strerror)) from None
    if not os.access(path, os.W_OK):
        raise Refusal("{} cannot be written to: name a folder of your own".format(path))


def bullets(lines):
    """Lines below the one before."""
    return "".join("\n  - {}".format(line) for line in lines)


def quoted(command):
    """A command as a shell reads it."""
    return " ".join(shlex.quote(word) for word in command)


def flag(name, arguments):
    """The last value of `NAME value` or `NAME=value`; None where it is not given, '' where nothing follows."""
    found = None
    for index, word in enumerate(arguments):
        if word == name:
            found = arguments[index + 1] if index + 1 < len(arguments) else ""
        elif word.startswith(name + "="):
            found = word[len(name) + 1 :]
    return found


def without(names, arguments):
    """The arguments but for these flags and their values."""
    rest, skipping = [], False
    for word in arguments:
        if skipping:
            skipping = False
        elif word in names:
            skipping = True
        elif word.partition("=")[0] not in names:
            rest.append(word)
    return rest


def replaced(name, value, arguments):
    """The arguments with another value for a flag that is given with one."""
    words, skipping = [], False
    for word in arguments:
        if skipping:
            skipping = False
        elif word == name or word.startswith(name + "="):
            words += [name, value]
            skipping = word == name
        else:
            words.append(word)
    return words
