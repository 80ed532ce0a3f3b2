"""The processes of a world, over plain sockets: without the three seconds that torch takes to import."""

import os
import socket
import time


class World:
    """Joins the world.

    Attributes:
        rank, size: as torch says it.
    """

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        self._peers = _accepted(address[1], self.size - 1) if self.rank == 0 else [_connected(address)]

    def any(self, flag: bool, seconds: float) -> bool:
        """Whether it holds on any rank.

        Raises:
            RuntimeError: another process has ended, or does not answer for `seconds`.
        """
        own = bytes([flag])
        try:
            if self.rank == 0:
                own = max(own, *(_received(peer, seconds) for peer in self._peers))
            for peer in self._peers:
                peer.sendall(own)
            found = own if self.rank == 0 else _received(self._peers[0], seconds)
        except OSError as error:
            raise RuntimeError(f"rank {self.rank}: another process does not answer") from error
        return found == b"\1"

    def close(self) -> None:
        """Leave it."""
        for peer in self._peers:
            peer.close()


def _accepted(port: int, number: int) -> list[socket.socket]:
    with socket.create_server(("", port)) as server:
        server.settimeout(300)
        return [server.accept()[0] for _ in range(number)]


def _connected(address: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + 300
    while True:
        try:
            return socket.create_connection(address, timeout=300)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _received(peer: socket.socket, seconds: float) -> bytes:
    peer.settimeout(seconds)
    flag = peer.recv(1)
    if not flag:
        raise ConnectionError("it has ended")
    return flag
