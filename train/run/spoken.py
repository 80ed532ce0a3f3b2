"""What the ranks of a launch have said: a message that several of them have is said once.

Rank 0 says its own at once. Another rank looks for a short while whether the message has been said, and says it with
its rank and host if not. What was said is a file named by the message's digest, in a folder that the ranks share: that
of the job's attempt (PACKHAUL_LOG_DIR), else of the launch on this machine. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from pathlib import Path

LOG_DIR = "PACKHAUL_LOG_DIR"
PATIENCE = 4.0  # seconds for a lower rank to say the same; processes of one launch do not start in the same moment
_FOLDER = ".said"


def rank() -> int:
    """This process's rank, as its launcher says."""
    return int(os.environ.get("RANK", "0"))


def shared_folder() -> Path | None:
    """Where this launch's processes can see each other's files; None where there is no such folder."""
    if given := os.environ.get(LOG_DIR):
        return Path(given)
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/LOCAL_RANK/error.json, in a folder of the launch
    return Path(error_file).parent.parent if error_file else None


def who() -> str:
    """As a line begins that is not rank 0's."""
    return f"rank {rank()} on {socket.gethostname()}: "


def claim(message: str) -> bool:
    """Whether no rank has said a message; from now on it counts as said."""
    sign = _sign(message)
    if sign is None:
        return True
    try:
        sign.parent.mkdir(exist_ok=True)
        os.close(os.open(sign, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    except OSError:
        return True  # rather twice than never
    return True


def is_mine(message: str) -> bool:
    """Whether this rank is to say a message now. Ranks other than 0 wait up to PATIENCE for others to say it."""
    sign, deadline = _sign(message), time.monotonic() + PATIENCE
    if sign is None or rank() == 0:
        claim(message)
        return True
    while time.monotonic() < deadline and not sign.exists():
        time.sleep(0.1)
    return claim(message)


def _sign(message: str) -> Path | None:
    """The file that says that a message was said; None in a world of one, and where no folder is shared."""
    folder = shared_folder()
    if folder is None or os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    return folder / _FOLDER / hashlib.sha256(message.encode(errors="replace")).hexdigest()[:32]
