"""Pushes models to the hub at checkpoints and at the end, while the training continues."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ul_tokenizer.hub.errors import HubError
from ul_tokenizer.hub.upload import Target, make_repository
from ul_tokenizer.publish.mixin import push_folder
from ul_tokenizer.training.arguments import TrainingArguments

RECORDS = ("config.yaml", "metrics.jsonl")  # the model card is made from these


class Pusher:
    """Pushes to `hub_model_id` in a thread, one push at a time; does nothing without `push_to_hub`.

    Args:
        args: the arguments of the run.
        is_main_process: whether this is the main process; others never push.
        say: prints a message for the user.
    """

    def __init__(self, args: TrainingArguments, is_main_process: bool, say: Callable[[str], None]) -> None:
        self.output_dir, self.say = Path(args.output_dir), say
        self.is_on = args.push_to_hub and is_main_process
        name = args.hub_model_id or self.output_dir.resolve().name
        self.target = Target(name, private=args.hub_private_repo, token=args.hub_token)
        self._pool = ThreadPoolExecutor(1, "push-to-hub")
        self._last: Future[str] | None = None

    def open(self) -> None:
        """Creates the repository before the first step, so that missing permissions show early.

        Raises:
            HubError: the hub can't be reached or refuses access.
        """
        if self.is_on:
            self.target = self.target._replace(repo_id=make_repository(self.target))

    def push(self, step: int, save: Callable[[Path], None]) -> None:
        """Starts to push the files that `save` writes to a folder; skips this if an earlier push is still running."""
        if not self.is_on:
            return
        if self._last is not None and not self._last.done():
            self.say(f"step {step} is not pushed, because the push before it is still running.")
            return
        self._report_failure()
        folder = Path(tempfile.mkdtemp(prefix="ul_tokenizer-push-"))
        try:
            save(folder)
            for record in RECORDS:
                if (self.output_dir / record).is_file():
                    shutil.copyfile(self.output_dir / record, folder / record)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._last = self._pool.submit(self._push, folder, self.target._replace(commit_message=f"Step {step}"))

    def _push(self, folder: Path, target: Target) -> str:
        try:
            return push_folder(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _report_failure(self) -> None:
        if self._last is not None and (error := self._last.exception()) is not None:
            self.say(f"a push failed: {error} Training goes on.")
        self._last = None

    def wait(self) -> None:
        """Waits for a running push, and prints a failure."""
        if self._last is not None:
            self._last.exception()
        self._report_failure()

    def finish(self) -> None:
        """Waits for the last push.

        Raises:
            HubError: the hub refused the push or could not be reached.
            OSError: a file could not be read.
        """
        if self._last is None:
            return
        try:
            commit = self._last.result()
        except HubError as error:
            command = f"`ul-tokenizer push {self.output_dir} {self.target.repo_id}`"
            raise HubError(
                f"The trained model is in {self.output_dir}, but was not pushed; {command} tries again: {error}"
            ) from error
        self.say(f"Pushed to {self.target.repo_id} as {commit}.")
