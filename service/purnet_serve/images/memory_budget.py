"""Room in memory, waited for in order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque


class Room:
    """So many bytes. Whoever wants some waits, in order of arrival, until they are free.

    A want larger than all the room is let through when it is alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.bytes = 0

    async def take(self, size: int) -> Share:
        """Wait for `size` bytes of room and take them. Cancelling takes nothing."""
        if not self._waiting and self._fits(size):
            self.bytes += size
            return Share(self, size)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(size)
            else:
                self._wake()
            raise
        return Share(self, size)

    def give_back(self, size: int) -> None:
        """Return `size` bytes of room."""
        self.bytes -= size
        self._wake()

    def _fits(self, size: int) -> bool:
        return self.bytes == 0 or self.bytes + size <= self._limit

    def _wake(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if not self._fits(size):
                    return
                self.bytes += size
                turn.set_result(None)
            self._waiting.popleft()


class Share:
    """Room that was taken, by whoever is to give it back."""

    def __init__(self, owner: Room, size: int) -> None:
        self._owner = owner
        self.bytes = size

    def resize(self, held: int) -> None:
        """Give back what is more than `held` bytes."""
        self._owner.give_back(self.bytes - held)
        self.bytes = held
