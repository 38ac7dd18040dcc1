"""Which list to claim from next: fair by weight, and no chain has every thread.

Chains take turns by stride: each claim moves a chain on by 1/weight, and the one that is least far on goes next. So
weights show in the number of claims. Beside that a chain never holds more threads than its share while others
have work, and it leaves some free for those that have nothing in hand: a slow chain cannot fill the worker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from conserver.config import ChainConfig

#: Even with no sign from the server, an empty list is looked at this often.
LOOK_AGAIN_SECS = 5.0


@dataclass
class _Turn:
    config: ChainConfig
    lists: list[str]
    position: float = 0.0
    in_hand: int = 0
    empty_until: dict[str, float] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    rested: bool = True
    """It had nothing to do since it last had a turn."""
    paused: bool = False
    probes: int = 0

    def ready(self, now: float) -> list[str]:
        return [name for name in self.lists if self.empty_until.get(name, 0.0) <= now]

    @property
    def held_back(self) -> bool:
        return self.paused and not self.probes


class Intake:
    """What one worker has in hand of each chain, and what it may take next."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._position = 0.0  # of the chain that had the last turn
        self._turns: dict[str, _Turn] = {}
        self._chain_of: dict[str, str] = {}
        self._paused: set[str] = set()

    def set_chains(self, chains: Iterable[tuple[ChainConfig, list[str]]]) -> None:
        """Take claims for these chains and their lists from now on; what is in hand of others still counts."""
        old, self._turns = self._turns, {}
        for config, lists in chains:
            turn = self._turns[config.name] = _Turn(config, lists)
            if config.name in old:
                turn.position, turn.in_hand = old[config.name].position, old[config.name].in_hand
            turn.paused = config.name in self._paused
            self._chain_of.update(dict.fromkeys(lists, config.name))
        for name, turn in old.items():
            if name not in self._turns and turn.in_hand:
                self._turns[name] = _Turn(turn.config, [], turn.position, turn.in_hand)

    def chain_of(self, list_name: str) -> str:
        """Return the chain that claims from *list_name*."""
        return self._chain_of[list_name]

    def wanted(self, free: int) -> dict[str, int]:
        """Return how many to claim from which list for *free* threads, in the order of their turns."""
        now = time.monotonic()
        turns = [t for t in self._turns.values() if t.config.weight > 0 and not t.held_back and t.ready(now)]
        if not turns or free <= 0:
            return {}
        # A chain that had nothing to do has saved up no turns: it goes on beside the one that had the last.
        for turn in turns:
            if turn.rested:
                turn.position = max(turn.position, self._position)
            turn.rested = False
        taken: dict[str, int] = dict.fromkeys((t.config.name for t in turns), 0)
        weights = sum(t.config.weight for t in turns)
        caps = {t.config.name: self._cap(t, weights, len(turns)) for t in turns}
        resting = sum(1 for t in self._turns.values() if not t.in_hand and t.lists and not t.held_back)
        for left in range(free, 0, -1):
            able = [t for t in turns if self._may(t, taken[t.config.name], caps[t.config.name], left, resting)]
            if not able:
                break
            turn = min(able, key=lambda t: (t.position, t.in_hand + taken[t.config.name]))
            if not turn.in_hand and not taken[turn.config.name]:
                resting -= 1
            self._position = max(self._position, turn.position)
            turn.position += 1 / turn.config.weight
            taken[turn.config.name] += 1
        return self._by_list(turns, taken, now)

    def _cap(self, turn: _Turn, weights: int, contenders: int) -> int:
        """Return how many claims of a chain may be in hand."""
        caps = [self._threads]
        if turn.paused:
            caps.append(turn.in_hand + turn.probes)
        if turn.config.concurrency is not None:
            caps.append(turn.config.concurrency)
        if contenders > 1:
            caps.append(math.ceil(self._threads * turn.config.weight / weights))
        return min(caps)

    def _may(self, turn: _Turn, taken: int, cap: int, left: int, resting: int) -> bool:
        mine = turn.in_hand + taken
        if mine >= cap:
            return False
        if mine == 0 or self._threads == 1:
            return True
        # What it leaves free is for those that have nothing in hand, and may have work the next moment.
        return left > min(resting, max(1, self._threads // 4))

    def _by_list(self, turns: list[_Turn], taken: Mapping[str, int], now: float) -> dict[str, int]:
        wanted: dict[str, int] = {}
        for turn in turns:
            n = taken[turn.config.name]
            ready = turn.ready(now)
            for i, name in enumerate(ready):
                share = -(-n // (len(ready) - i))
                if share:
                    wanted[name] = share
                n -= share
            # The lists of a chain take turns as well.
            turn.lists.append(turn.lists.pop(0))
        return wanted

    def took(self, wanted: Mapping[str, int], got: Mapping[str, int]) -> None:
        """Note how many claims each list gave; one that gave fewer than asked for is empty for now."""
        now = time.monotonic()
        for name, n in wanted.items():
            turn = self._turns[self._chain_of[name]]
            given = got.get(name, 0)
            turn.in_hand += given
            if given:
                turn.unreadable.discard(name)
            turn.probes = max(0, turn.probes - given)
            if given < n:
                # It did not use all of its turns.
                turn.position -= (n - given) / turn.config.weight
                turn.empty_until[name] = now + LOOK_AGAIN_SECS
                turn.rested = turn.rested or not turn.ready(now)

    def settled(self, chain: str) -> None:
        """Note that a claim of *chain* is settled or abandoned."""
        if chain in self._turns:
            self._turns[chain].in_hand -= 1

    def look(self, lists: Iterable[str]) -> None:
        """Something may be in *lists*."""
        for name in lists:
            chain = self._chain_of.get(name)
            if chain in self._turns:
                self._turns[chain].empty_until.pop(name, None)

    def rest(self, name: str, secs: float) -> bool:
        """Leave a list that cannot be read alone for a while; say whether that is news."""
        turn = self._turns[self._chain_of[name]]
        turn.empty_until[name] = time.monotonic() + secs
        news = name not in turn.unreadable
        turn.unreadable.add(name)
        return news

    def lists(self) -> list[str]:
        """Return all lists that this worker claims from."""
        return [name for turn in self._turns.values() for name in turn.lists]

    def empty(self) -> list[str]:
        """Return the lists that gave nothing when they were last asked, and would be welcome."""
        now = time.monotonic()
        return [
            name
            for turn in self._turns.values()
            if not turn.held_back
            for name in turn.lists
            if turn.empty_until.get(name, 0.0) > now and name not in turn.unreadable
        ]

    def set_paused(self, chains: Iterable[str]) -> None:
        """Stop claiming for *chains*, and go on with all others."""
        self._paused = set(chains)
        for name, turn in self._turns.items():
            turn.paused = name in self._paused
            if turn.paused:
                # It saves up no turns either.
                turn.rested = True
            else:
                turn.probes = 0

    def probe(self, chain: str) -> None:
        """Let one claim of a paused chain through, to see whether it works again."""
        if chain in self._turns:
            self._turns[chain].probes = 1
            self.look(self._turns[chain].lists)

    def paused(self, chain: str) -> bool:
        """Say whether *chain* is paused."""
        return chain in self._paused
