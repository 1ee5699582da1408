"""Trains all bundled weights in a queue, one stage after the other; run again, it goes on where it was.

    python examples/train_weights.py                     # every stage that isn't finished
    python examples/train_weights.py --status            # what is finished, and how far the others are
    python examples/train_weights.py --until ul-emoji    # the stages up to this one
    python examples/train_weights.py --only ul-fashion ul-fashion-base

The list of stages is a YAML file, by default examples/weights.yaml:

    variables: {PHOTOS: ~/.cache/ul_tokenizer/debian-photos}     # the environment takes precedence
    stages:
      - name: ul-photo-f8
        command: ul-tokenizer train autoencoder --train_data_dir $PHOTOS/train
        config: ul-photo-f8                       # --config of the command
        needs: [photos, $PHOTOS/train]            # earlier stages, and paths (with a slash)
        done_when: runs/ul-photo-f8/config.json   # one or several paths, which exist in the end

A stage is finished when its command has ended with status 0 and left what `done_when` names, or when this is there
without a record of the stage, for example from another machine. A stage whose command or config has changed since runs
again. If a stage fails, the others go on, except those that need it.

The queue may be killed at any moment. Its stages are expected to go on from their own checkpoints. A stage that still
runs after its queue was killed is left alone: the next queue waits for it. Ctrl-C and SIGTERM stop the stage in the
way that training understands, with a checkpoint. Records and logs of the stages are in runs/weights.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import signal
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from ul_tokenizer.files import read_json_object, write_json
from ul_tokenizer.training.recipes import find_config

LIST = Path(__file__).with_name("weights.yaml")
FOLDER = Path("runs/weights")
KEYS = {"name", "command", "config", "needs", "done_when"}
PROGRAMS = {"python": [sys.executable], "ul-tokenizer": [sys.executable, "-m", "ul_tokenizer"]}  # of this environment
FINISHED = ("finished", "present")


# ---------------------------------------------------------------- the list


@dataclass(frozen=True)
class Stage:
    """A command with what it needs and what it leaves."""

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...]  # names of stages, or paths
    done_when: tuple[Path, ...]
    definition: str  # hash of its command and config

    @property
    def is_done(self) -> bool:
        """Whether all that it leaves exists."""
        return all(path.exists() for path in self.done_when)

    def missing(self) -> str:
        """The first path that should exist and doesn't."""
        return str(next(path for path in self.done_when if not path.exists()))


def read_stages(path: Path, environment: Mapping[str, str]) -> list[Stage]:
    """Reads the list of stages.

    Raises:
        ValueError: the list has another form, or a stage needs what is not in it.
        OSError: the file can't be read.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} must be a YAML file, got one that can't be read: {_one_line(error)}.") from error
    rows = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} must have a list of stages.")
    variables = {**{k: str(v) for k, v in (content.get("variables") or {}).items()}, **environment}
    stages: list[Stage] = []
    for number, row in enumerate(rows, 1):
        stages.append(_stage(row, f"stage {number} of {path}", variables, [stage.name for stage in stages]))
    return stages


def _stage(row: Any, where: str, variables: Mapping[str, str], earlier: Sequence[str]) -> Stage:
    if not isinstance(row, dict) or not {"name", "command", "done_when"} <= set(row) <= KEYS:
        raise ValueError(
            f"{where} must have a name, a command and done_when, and may have config and needs, got {row}."
        )
    name = str(row["name"])
    if not re.fullmatch(r"[\w.-]+", name) or name in earlier:
        raise ValueError(f"{where} must have a name of its own of letters, digits, dots and hyphens, got {name!r}.")
    words = [_expanded(word, where, variables) for word in shlex.split(row["command"])]
    text = row["command"]
    if row.get("config") is not None:
        config = find_config(_expanded(str(row["config"]), where, variables))
        words += ["--config", str(row["config"])]
        text += "\n" + config.read_text(encoding="utf-8")
    needs = tuple(_expanded(need, where, variables) for need in _listed(row.get("needs")))
    unknown = [need for need in needs if "/" not in need and need not in earlier]
    if unknown:
        raise ValueError(f"{where} must need earlier stages or paths with a slash, got {unknown[0]!r}.")
    done_when = tuple(Path(_expanded(path, where, variables)) for path in _listed(row["done_when"]))
    program = PROGRAMS.get(words[0], words[:1]) if words else []
    if not program or not done_when:
        raise ValueError(f"{where} must have a command and a path in done_when, got {row}.")
    definition = hashlib.sha256(text.encode()).hexdigest()
    return Stage(name, (*program, *words[1:]), needs, done_when, definition)


def _listed(value: Any) -> list[str]:
    return [] if value is None else [str(part) for part in (value if isinstance(value, list) else [value])]


def _expanded(word: str, where: str, variables: Mapping[str, str]) -> str:
    try:
        return os.path.expanduser(string.Template(word).substitute(variables))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{where} must use known variables only, got {word!r}.") from error


def chosen(stages: Sequence[Stage], until: str | None, only: Sequence[str]) -> list[Stage]:
    """The stages to run.

    Raises:
        ValueError: there is no stage of a name.
    """
    names = [stage.name for stage in stages]
    for name in [*([] if until is None else [until]), *only]:
        if name not in names:
            raise ValueError(f"a stage must be one of {', '.join(names)}, got {name!r}.")
    last = len(stages) if until is None else names.index(until) + 1
    return [stage for stage in stages[:last] if not only or stage.name in only]


# ---------------------------------------------------------------- records


class Records:
    """What the queue knows of its stages, and their logs.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, stage: Stage) -> Path:
        """The log of all attempts at a stage."""
        return self.folder / f"{stage.name}.log"

    def read(self, stage: Stage) -> dict[str, Any] | None:
        """The record of a stage; None if it never began, or if the record is damaged."""
        with contextlib.suppress(OSError, ValueError):
            return read_json_object(self.folder / f"{stage.name}.json")
        return None

    def write(self, stage: Stage, **changes: Any) -> None:
        """Changes entries of the record of a stage."""
        write_json(self.folder / f"{stage.name}.json", {**(self.read(stage) or {}), **changes})

    def state(self, stage: Stage, is_running: bool = False) -> str:
        """How far a stage is, in a word.

        Args:
            stage: the stage.
            is_running: whether a queue runs, of which this could be the stage.
        """
        record = self.read(stage)
        if record is None:
            return "present" if stage.is_done else "waiting"
        state = str(record.get("state"))
        if state == "running":
            return "running" if is_running else "interrupted"
        if state == "finished" and not stage.is_done:
            return "lost"  # its results were removed
        if state == "finished" and record.get("definition") != stage.definition:
            return "changed"
        return state

    def seconds(self, stage: Stage) -> float:
        """How long all attempts at a stage took; one that was killed, until its last line of log."""
        record = self.read(stage) or {}
        seconds = float(record.get("seconds", 0))
        if record.get("state") == "running" and self.log(stage).is_file():
            seconds += max(0.0, self.log(stage).stat().st_mtime - float(record["started"]))
        return seconds

    def last_line(self, stage: Stage) -> str:
        """The last line of a stage's log, which in a training tells how far it is."""
        if not self.log(stage).is_file():
            return ""
        with self.log(stage).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = [line for line in re.split(r"[\r\n]+", file.read().decode("utf-8", "replace")) if line.strip()]
        return lines[-1].strip() if lines else ""


# ---------------------------------------------------------------- the lock


@contextlib.contextmanager
def queue_lock(folder: Path) -> Iterator[TextIO]:
    """The lock of a folder of records; waits while another queue has it, or a stage that outlived its queue."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        if not _lock(file):
            print("another queue, or a stage of one that was killed, still runs; waiting for its end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(folder: Path) -> bool:
    """Whether a queue, or a stage of one, runs."""
    path = folder / ".lock"
    if not path.is_file():
        return False
    with path.open("a") as file:
        return not _lock(file)


# ---------------------------------------------------------------- running


class Queue:
    """Runs stages one after the other.

    Args:
        stages: all stages of the list.
        records: the records.
        lock: the lock, which every stage holds as well until its end.
        threads: how many threads a stage may use.
    """

    def __init__(self, stages: Sequence[Stage], records: Records, lock: TextIO, threads: int) -> None:
        self.by_name = {stage.name: stage for stage in stages}
        self.records, self.lock, self.threads = records, lock, threads
        self.received: int | None = None  # the signal that ends the queue
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, stages: Sequence[Stage]) -> int:
        """Runs those of some stages that aren't finished; returns the exit status."""
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            unfinished = [stage.name for stage in stages if not self._finish(stage)]
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self.received is not None:
            return 128 + self.received
        if unfinished:
            print(f"not finished: {', '.join(unfinished)}", flush=True)
        return 1 if unfinished else 0

    def _stop(self, number: int, frame: object) -> None:
        self.received = number
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def _finish(self, stage: Stage) -> bool:
        """Runs a stage if need be; returns whether it is finished."""
        if self.received is not None:
            return False
        if self.records.state(stage) in FINISHED:
            print(f"{stage.name}: finished before", flush=True)
            return True
        missing = self._missing_need(stage)
        if missing is not None:
            print(f"{stage.name}: left out, because it needs {missing}", flush=True)
            return False
        return self._run(stage)

    def _missing_need(self, stage: Stage) -> str | None:
        for need in stage.needs:
            if need in self.by_name:
                if self.records.state(self.by_name[need]) not in FINISHED:
                    return f"the stage {need}"
            elif not Path(need).exists():
                return f"{need}, which doesn't exist"
        return None

    def _run(self, stage: Stage) -> bool:
        before = self.records.seconds(stage)
        attempts = (self.records.read(stage) or {}).get("attempts", 0) + 1
        started = time.time()
        print(f"{stage.name}: attempt {attempts}, log in {self.records.log(stage)}", flush=True)
        entries = {"definition": stage.definition, "attempts": attempts, "started": started, "seconds": before}
        self.records.write(stage, state="running", **entries)
        status = self._call(stage)
        seconds = before + time.time() - started
        state, sentence = self._outcome(stage, status)
        self.records.write(stage, state=state, status=status, seconds=round(seconds, 3))
        print(f"{stage.name}: {sentence} after {_duration(seconds)}", flush=True)
        return state == "finished"

    def _call(self, stage: Stage) -> int:
        """The exit status of a stage's command, in a group of its own: a Ctrl-C is ours to hand on, once."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with self.records.log(stage).open("ab") as log:
            log.write(f"\n$ {shlex.join(stage.words)}\n".encode())
            log.flush()
            try:
                self._process = subprocess.Popen(
                    stage.words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=[self.lock.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                log.write(f"{error}\n".encode())
                return 127
            self.records.write(stage, pid=self._process.pid)
            if self.received is not None:  # between the last check and the start
                self._process.send_signal(signal.SIGTERM)
            status = self._process.wait()
            self._process = None
            return status

    def _outcome(self, stage: Stage, status: int) -> tuple[str, str]:
        """State of a stage that ended, and a few words about it."""
        if self.received is not None:  # a training that a signal stops ends with status 0
            return "stopped", f"stopped by {signal.Signals(self.received).name}"
        if status:
            return "failed", f"failed with status {status} ({self.records.last_line(stage)})"
        if not stage.is_done:
            return "failed", f"ended without {stage.missing()}"
        return "finished", "finished"


def describe(stages: Sequence[Stage], records: Records) -> str:
    """A line for each stage: its name, its state, how long it took and the last line of its log."""
    is_running = is_locked(records.folder)
    width = max(len(stage.name) for stage in stages)
    lines = []
    for stage in stages:
        state = records.state(stage, is_running)
        note = "" if state in FINISHED else records.last_line(stage)
        lines.append(f"{stage.name:{width}}  {state:11}  {_duration(records.seconds(stage)):>9}  {note}".rstrip())
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description="Train all bundled weights, one stage after the other.")
    parser.add_argument("--list", type=Path, default=LIST, help="YAML file of the stages (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="records and logs (default: %(default)s)")
    parser.add_argument("--status", action="store_true", help="show how far each stage is, and run nothing")
    parser.add_argument("--until", metavar="STAGE", help="run the stages of the list up to this one")
    parser.add_argument("--only", metavar="STAGE", nargs="+", default=[], help="run these stages only")
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--threads", type=int, default=threads, help="threads of a stage (default: all cores)")
    args = parser.parse_args(argv)
    try:
        stages = read_stages(args.list, os.environ)
        records, wanted = Records(args.folder), chosen(stages, args.until, args.only)
        if args.status:
            print(describe(wanted, records))
            return 0
        with queue_lock(args.folder) as lock:
            return Queue(stages, records, lock, args.threads).run(wanted)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # while it waits for the lock
        return 128 + signal.SIGINT


if __name__ == "__main__":
    raise SystemExit(main())
