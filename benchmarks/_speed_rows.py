"""Times the contests of `speed.py`: each entrant in turn with its peer, so that ratios are of one moment."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from _measure import memory_of, seconds_of
from _speed_networks import Entrant, Job, Setting, Size
from _speed_shares import shares_of
from _speed_tasks import Contest

from ul_tokenizer.evaluation.measures.flops import Flops, split_flops


class Spread(NamedTuple):
    """Of several runs."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """A network's figures on one job.

    Attributes:
        group: of the contest.
        axis: what grows from row to row; nothing outside of "growth".
        network: who.
        is_ours: whether it is ours.
        job: what.
        steps: of denoising; nothing for what has none.
        size: what goes into a call.
        dtype: in which everything is computed, under autocast in training.
        compiled: whether by torch.compile.
        parameters: of the part that works.
        flops: of a call.
        seconds: of a call.
        runs: how many were timed.
        peer: to whom the ratio is; nothing for the peer itself.
        ratio: this network's seconds divided by the peer's, of pairs of runs one after the other.
        memory: bytes at the peak of a call beyond what was there before it (weights, inputs); nothing if unknown.
        shares: fractions of the time by kind of operator, if asked for.
    """

    group: str
    axis: str | None
    network: str
    is_ours: bool
    job: str
    steps: int | None
    size: Size
    dtype: str
    compiled: bool
    parameters: int
    flops: Flops
    seconds: Spread
    runs: int
    peer: str | None
    ratio: Spread | None
    memory: int | None
    shares: dict[str, float] | None

    def fractions(self, peaks: dict[str, float]) -> dict[str, float]:
        """FLOP/s as fractions of the peaks of convolutions and of matrix products."""
        return {name: self.flops.total / self.seconds.median / peak for name, peak in peaks.items()}

    def to_json(self, peaks: dict[str, float]) -> dict[str, Any]:
        """For the result file."""
        plain = {key: value for key, value in self.__dict__.items() if key not in ("memory", "ratio")}
        return {
            **plain,
            "size": asdict(self.size),
            "flops": self.flops._asdict(),
            "seconds": self.seconds._asdict(),
            "of_peak": self.fractions(peaks),
            "ratio_to_peer": self.ratio and self.ratio._asdict(),
            "peak_memory_bytes": self.memory,
        }


class Timer:
    """Times contests.

    Args:
        runs: timed calls of each job, after those that warm up.
        with_shares: whether to find out where the time goes, too.
    """

    def __init__(self, runs: int, with_shares: bool = False) -> None:
        self.runs, self.with_shares = runs, with_shares
        self._flops: dict[tuple[str, str, Size], Flops] = {}  # the same in every setting

    def rows(self, contest: Contest, setting: Setting) -> Iterator[Row | str]:
        """A contest's rows, the peer's last; a sentence for what can't be measured."""
        peer_times: list[float] = []
        peer: Candidate | None = None
        for entrant in contest.entrants:
            try:
                peer = peer or self._first(contest.peer, contest, setting)
                for job in entrant.jobs(setting, contest.size):
                    candidate = self._prepared(entrant, job, contest, setting)
                    times, theirs = self._in_turn(candidate, peer, setting)
                    peer_times += theirs
                    ratio = Spread.of([a / b for a, b in zip(times, theirs, strict=True)])
                    yield candidate.row(times, contest.peer.network, ratio)
            except RuntimeError as error:  # too little memory, or what a compiler cannot do
                if not (isinstance(error, torch.OutOfMemoryError) or setting.compiled):
                    raise
                who = entrant.network if peer else contest.peer.network
                yield f"{contest.group}: {who} at {contest.size} is left out: {_first_line(error)}"
        if peer_times and peer:
            yield peer.row(peer_times, None, None)

    def _first(self, entrant: Entrant, contest: Contest, setting: Setting) -> Candidate:
        return self._prepared(entrant, next(entrant.jobs(setting, contest.size)), contest, setting)

    def _prepared(self, entrant: Entrant, job: Job, contest: Contest, setting: Setting) -> Candidate:
        """Counts, warms up and measures memory."""
        key = (entrant.network, job.name, contest.size)
        if key not in self._flops:
            with torch.compiler.set_stance("force_eager"):  # what a compiler makes of operators isn't known by name
                self._flops[key] = split_flops(job.call)
        if setting.compiled:
            job.call()
        memory = memory_of(job.call, setting.device)
        shares = shares_of(job.call, setting.device) if self.with_shares else None
        return Candidate(entrant, job, contest, setting, self._flops[key], memory, shares)

    def _in_turn(self, ours: Candidate, peer: Candidate, setting: Setting) -> tuple[list[float], list[float]]:
        """Seconds of both, run by run."""
        pairs = [
            tuple(seconds_of(candidate.job.call, setting.device) for candidate in (ours, peer))
            for _ in range(self.runs)
        ]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


@dataclass(frozen=True)
class Candidate:
    """A job that is ready to be timed."""

    entrant: Entrant
    job: Job
    contest: Contest
    setting: Setting
    flops: Flops
    memory: int | None
    shares: dict[str, float] | None

    def row(self, times: Sequence[float], peer: str | None, ratio: Spread | None) -> Row:
        """Its row, given what was timed."""
        return Row(
            group=self.contest.group,
            axis=self.contest.axis,
            network=self.entrant.network,
            is_ours=self.entrant.is_ours,
            job=self.job.name,
            steps=self.job.steps,
            size=self.contest.size,
            dtype=str(self.setting.dtype).removeprefix("torch."),
            compiled=self.setting.compiled,
            parameters=self.job.parameters,
            flops=self.flops,
            seconds=Spread.of(times),
            runs=len(times),
            peer=peer,
            ratio=ratio,
            memory=self.memory,
            shares=self.shares,
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
