"""What two ends of a connection do, step by step, and how hypothesis makes such schedules up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hypothesis import strategies as st

End = Literal[0, 1]
"""0 is the client, 1 is upstream."""


@dataclass(frozen=True)
class Send:
    """Hands `size` bytes to the kernel, `times` times; what it does not take now goes before whatever comes later."""

    end: End
    size: int
    times: int = 1
    urgent: bool = False
    """The last byte of each is urgent; it stays in the stream."""


@dataclass(frozen=True)
class Talk:
    """Both send in turn, the client so many bytes and upstream so many."""

    sizes: tuple[int, int]
    times: int


@dataclass(frozen=True)
class Read:
    """Takes what is there, at most `size` bytes. Nobody reads otherwise, until a Settle or the end."""

    end: End
    size: int


@dataclass(frozen=True)
class Shut:
    """Half-closes, behind all bytes sent so far."""

    end: End


@dataclass(frozen=True)
class Abort:
    """Ends with a reset, or by closing, which is a reset too if bytes were unread or come later."""

    end: End
    reset: bool


@dataclass(frozen=True)
class Settle:
    """Both read until they have all that was sent so far."""


@dataclass(frozen=True)
class Pause:
    """A millisecond, in which the relay can do what it has to do."""


@dataclass(frozen=True)
class Frozen:
    """The relay sleeps meanwhile, and then finds all of it in one batch."""

    steps: tuple[Step, ...]


Step = Send | Talk | Read | Shut | Abort | Settle | Pause | Frozen


@dataclass(frozen=True)
class Schedule:
    """What happens to one connection. In the end both ends half-close, if they have not yet, and read to the end."""

    steps: tuple[Step, ...]
    early: bool = False
    """The relay sleeps from before the client connects until something else than sending by the client comes."""
    settled: bool = True
    """All bytes have to arrive before the ends of file are sent: no hang-up helps a stalled one."""

    def aborts(self) -> bool:
        """Is there an abort in it?"""
        inside = (step.steps if isinstance(step, Frozen) else (step,) for step in self.steps)
        return any(isinstance(step, Abort) for steps in inside for step in steps)

    def sends(self) -> tuple[int, int]:
        """Bytes that each end sends."""
        totals = [0, 0]
        for outer in self.steps:
            for step in outer.steps if isinstance(outer, Frozen) else (outer,):
                if isinstance(step, Send):
                    totals[step.end] += step.size * step.times
                elif isinstance(step, Talk):
                    totals = [total + size * step.times for total, size in zip(totals, step.sizes, strict=True)]
        return totals[0], totals[1]

    def swapped(self) -> Schedule:
        """The same with the ends swapped."""
        return replace(self, steps=tuple(map(_swapped, self.steps)))


def _swapped(step: Step) -> Step:
    if isinstance(step, Frozen):
        return Frozen(tuple(map(_swapped, step.steps)))
    if isinstance(step, Talk):
        return replace(step, sizes=step.sizes[::-1])
    if isinstance(step, Settle | Pause):
        return step
    return replace(step, end=1 - step.end)


# Around the sizes where something changes: a segment that the relay sends without TCP_NODELAY (536), its small and
# large buffer (4 and 64 KiB), a splice worth having (16 KiB), one that probably left bytes behind (256 KiB), a pipe.
EDGES = [edge + off for edge in (536, 4096, 16384, 65536) for off in (-1, 0, 1)]
LARGE = [edge + off for edge in (131072, 262144) for off in (-1, 0, 1)]
HUGE = [(1 << 20) - 1, (1 << 20) + 1, 3 << 20]

_ends = st.sampled_from((0, 1))
_small = st.integers(1, 3000)
_edges = st.sampled_from(EDGES)
_sizes = st.one_of(_small, _small, _edges, _edges, st.sampled_from(LARGE))
_sends = st.builds(Send, _ends, _sizes)
_urgent = st.builds(Send, _ends, st.one_of(st.just(1), st.just(1), _small, _edges), urgent=st.just(True))
_dribbles = st.builds(Send, _ends, st.sampled_from((1, 2, 100)), st.sampled_from((30, 700)), st.booleans())
# Small segments fill the 256 slots of a pipe long before its bytes; but the kernel merges those that lie side by side
# in the memory of one sender, so another one has to send between them.
_talks = st.builds(Talk, st.tuples(st.sampled_from((1, 100, 1000)), st.sampled_from((1, 100))), st.just(600))
_huge = st.builds(Send, _ends, st.sampled_from(HUGE))
_reads = st.builds(Read, _ends, st.one_of(_small, st.sampled_from((65536, 1 << 20))))
_shuts = st.builds(Shut, _ends)
_aborts = st.builds(Abort, _ends, st.booleans())
_batched = st.one_of(_sends, _sends, _urgent, _urgent, _reads, _shuts, _dribbles, _talks)
_batches = st.lists(_batched, min_size=1, max_size=4)
_frozen = _batches.map(lambda steps: Frozen(tuple(steps)))
_steps = st.lists(
    st.one_of(_sends, _sends, _urgent, _reads, _reads, _frozen, _frozen, _frozen, _shuts, st.just(Settle()))
    | st.one_of(st.sampled_from((Pause(), Settle())), _dribbles)
    | _huge,
    max_size=8,
)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any schedule; one in three has an abort, most of these in one batch with what comes before."""
    steps: list[Step] = draw(_steps)
    if draw(st.integers(0, 2)) == 2:
        abort = draw(_aborts)
        if draw(st.integers(0, 2)):
            steps.append(Frozen((*draw(_batches), abort)))
        else:
            steps.append(abort)
        steps += draw(st.lists(_batched, max_size=3))
    return Schedule(tuple(steps), draw(st.booleans()), draw(st.booleans()))
