"""Where a run starts: its first step or a checkpoint, on which all processes agree before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ul_tokenizer.processes import Processes
from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.engine.checkpoints import STATE_FILE, find_checkpoint, list_checkpoints, read_state, step_of


class Start(NamedTuple):
    """The checkpoint to resume and the trainer's state in it; without one, the state of a new run."""

    checkpoint: Path | None
    state: dict[str, Any]


def agree_on_start(args: TrainingArguments, global_batch_size: int, processes: Processes) -> Start:
    """The start that the main process finds, if all others see the same files; every process must call it.

    Raises:
        ValueError: there is no such checkpoint, it is one of a run with another seed or batch, later checkpoints exist,
            or a process sees other files than the main one.
        OSError: the checkpoint can't be read.
    """
    start = processes.from_main(lambda: _find(args, global_batch_size))
    if args.resume_from_checkpoint:
        here = _seen_here(args, start.checkpoint)
        for rank, seen in enumerate(views := processes.gather(here)):
            if seen != views[0]:
                raise ValueError(_disagreement(start.checkpoint, rank, seen))
    return start


def _find(args: TrainingArguments, global_batch_size: int) -> Start:
    output_dir, wanted = Path(args.output_dir), args.resume_from_checkpoint
    folder = find_checkpoint(output_dir, wanted) if wanted else None
    state = read_state(folder) if folder else {"step": 0}
    if folder is not None:
        _check_fit(args, global_batch_size, folder, state)
    # In one folder, checkpoints of two runs would mix, and the limit would remove the wrong ones.
    later = [path.name for path in list_checkpoints(output_dir) if step_of(path) > state["step"]]
    if later:
        raise ValueError(
            f"--output_dir {output_dir} holds {later[-1]}, but this run would start at step {state['step']}; "
            "use --resume_from_checkpoint latest or another folder."
        )
    return Start(folder, state)


def _check_fit(args: TrainingArguments, global_batch_size: int, folder: Path, state: dict[str, Any]) -> None:
    for name, here in (("global_batch_size", global_batch_size), ("seed", args.seed)):
        if state[name] != here:
            raise ValueError(
                f"{folder} was made with a {name.replace('_', ' ')} of {state[name]}, got {here}, "
                f"which would repeat or skip samples; use --{name} {state[name]}."
            )


def _seen_here(args: TrainingArguments, checkpoint: Path | None) -> tuple[str, str] | None:
    """Name and state of the main process's checkpoint, as this process sees it, or of its own latest one."""
    found = checkpoint
    if checkpoint is None:
        found = next(reversed(list_checkpoints(Path(args.output_dir))), None)
    if found is None or not (found / STATE_FILE).is_file():
        return None
    return found.name, (found / STATE_FILE).read_text(encoding="utf-8")


def _disagreement(checkpoint: Path | None, rank: int, seen: tuple[str, str] | None) -> str:
    there = "no checkpoint" if checkpoint is None else str(checkpoint)
    here = "none" if seen is None else f"another {seen[0]}" if checkpoint else seen[0]
    return (
        f"--resume_from_checkpoint must name what all processes see: the main process has {there}, "
        f"process {rank} has {here}; use an --output_dir on a disk that all nodes share."
    )
