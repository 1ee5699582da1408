"""The training loop of all stages."""

from __future__ import annotations

import datetime
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from diffusers import ModelMixin
from PIL import Image

from ul_tokenizer.files import whole_file, write_whole
from ul_tokenizer.processes import Processes
from ul_tokenizer.progress import Bar, progress
from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.engine.accelerator import (
    describe_run,
    global_batch_size,
    make_accelerator,
    precision_warning,
)
from ul_tokenizer.training.engine.checkpoints import Checkpoints
from ul_tokenizer.training.engine.lock import OutputLock
from ul_tokenizer.training.engine.optimization import apply_arguments
from ul_tokenizer.training.engine.pushing import Pusher
from ul_tokenizer.training.engine.sharding import cpu_copy, is_sharding, whole_model
from ul_tokenizer.training.engine.signals import StopSignal
from ul_tokenizer.training.engine.stage import Stage
from ul_tokenizer.training.engine.start import Start, agree_on_start
from ul_tokenizer.training.engine.steps import Stepper
from ul_tokenizer.training.engine.tracking import JsonLinesTracker, RunningMeans, hyperparameters, log_picture

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def run_stage(
    args: Arguments, make_stage: Callable[[Arguments], Stage], estimate: Callable[[Arguments, Any], str]
) -> bool:
    """Trains a stage or, with `dry_run`, prints what it would train.

    Args:
        args: the arguments of the run.
        make_stage: makes the stage from the arguments.
        estimate: describes what the run needs, as YAML comments, from the arguments and the stage. The stage is None in
            a dry run without data.

    Returns:
        whether the training reached its last step; False for a dry run, or if a signal stopped it.

    Raises:
        TrainingError: gradients stay non-finite.
        ValueError: arguments, data, networks or the checkpoint don't fit together.
        OSError: a file can't be read or written, or the hub can't be reached.
        ImportError: an optional package is missing.
    """
    if args.dry_run and not args.names_data:
        PartialState(cpu=not torch.accelerator.is_available()).print(args.to_yaml() + estimate(args, None))
        return False
    accelerator = make_accelerator(args)
    warning = precision_warning(accelerator.mixed_precision, accelerator.device)
    if accelerator.is_main_process and warning:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    if args.dry_run:
        stage = make_stage(args)
        accelerator.print(args.to_yaml() + stage.describe() + "\n" + estimate(args, stage))
        return False
    processes = Processes.of_accelerator(accelerator)
    with OutputLock(Path(args.output_dir)) as lock:
        processes.from_main(lock.take_if_used)
        start = agree_on_start(args, global_batch_size(args, accelerator), processes)
        with processes.together():
            stage = make_stage(args)
        processes.from_main(lock.take)
        return Trainer(args, stage, accelerator, start).run()


class Trainer:
    """Trains a stage, from its last checkpoint to its last step.

    Args:
        args: the arguments of the run.
        stage: the stage to train; its models are moved to the accelerator's device.
        accelerator: the result of `make_accelerator`.
        start: the result of `agree_on_start`.
    """

    def __init__(self, args: TrainingArguments, stage: Stage, accelerator: Accelerator, start: Start) -> None:
        self.args, self.stage, self.accelerator, self.start = args, stage, accelerator, start
        self.processes = Processes.of_accelerator(accelerator)
        self.output_dir = Path(args.output_dir)
        self.max_steps = self._max_steps()
        self.step = 0
        self._bar = Bar(None, None, "steps")  # until the real one is shown
        self.means = RunningMeans()
        self._pusher = Pusher(args, accelerator.is_main_process, self._say)
        self._restart_clock()
        self.steps = Stepper(args, stage, accelerator, self.max_steps, self._say)
        self.checkpoints = Checkpoints(
            self.steps, self.output_dir, args.checkpoints_total_limit, args.async_checkpoints, self._say
        )

    def _max_steps(self) -> int:
        if self.args.max_train_steps is not None:
            return self.args.max_train_steps
        args = self.args
        assert args.num_train_epochs is not None  # TrainingArguments sets one of the two
        return math.ceil(args.num_train_epochs * len(self.stage.dataset) / global_batch_size(args, self.accelerator))

    # ------------------------------------------------------------------------------------------------------------
    # The run
    # ------------------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Trains to the last step, or saves a checkpoint and returns at a signal.

        Returns:
            whether the last step was reached.

        Raises:
            TrainingError: gradients stay non-finite.
            ValueError: the checkpoint to resume doesn't fit, or `output_dir` contains those of another run.
            OSError: the last checkpoint or the trained model can't be written or pushed.
        """
        try:
            self.processes.from_main(self._pusher.open)
            with self.processes.together():
                self.stage.prepare(self.accelerator)
            self._resume()
            self._start_trackers()
            self._say(describe_run(self.args, self.accelerator))
            with StopSignal() as stop, self._progress():
                is_finished = self._train(stop)
                if is_finished:
                    self._finish()
                else:
                    self._checkpoint()
                    self.checkpoints.finish()
                    self._say(f"{stop.name or 'A signal'} received: saved checkpoint-{self.step}, stopping.")
            return is_finished
        finally:
            self._end()

    @contextmanager
    def _progress(self) -> Iterator[None]:
        """Shows a progress bar on the main process, if there is a terminal."""
        is_main = self.accelerator.is_main_process
        with progress("training", self.max_steps, "steps", completed=self.step, shown=is_main) as self._bar:
            yield

    def _end(self) -> None:
        """Releases DDP before its process group, and ends the trackers."""
        self.checkpoints.report()
        self._pusher.wait()
        # If DDP were the last owner of the group, it would hold Python's lock while it waits for gloo's threads to
        # end. Those need the lock to free the tensors of the last exchange, so some runs would hang at their end.
        del self.steps.model
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _train(self, stop: StopSignal) -> bool:
        """Trains; returns whether it reached the last step, and False at a signal."""
        batches = self.steps.batches(self.step)
        self.steps.set_train_mode()
        self._restart_clock()
        while self.step < self.max_steps:
            self.means.add(self.steps.step(self.step, batches))
            self.step += 1
            self._bar.update()
            if self._is_due(self.args.logging_steps):
                self._log()
            if self._is_due(self.args.validation_steps):
                self._validate()
            if stop.received(self.accelerator):
                return False
            if self.step % self.args.checkpointing_steps == 0 and self.step < self.max_steps:  # then `_finish` does it
                self._periodic_checkpoint()
        return True

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.max_steps

    def _start_trackers(self) -> None:
        self.accelerator.init_trackers(self.args.tracker_project_name, hyperparameters(self.args.shareable()))
        with self.processes.together():
            tracker = JsonLinesTracker(self.output_dir / "metrics.jsonl", self.step)
        self.accelerator.trackers.append(tracker)
        self.processes.from_main(lambda: write_whole(self.output_dir / "config.yaml", self.args.to_yaml()))

    # ------------------------------------------------------------------------------------------------------------
    # Between steps
    # ------------------------------------------------------------------------------------------------------------

    def _restart_clock(self) -> None:
        self._clock = time.perf_counter(), self.step

    def _log(self) -> None:
        values = self.means.take(self.accelerator)
        started, first_step = self._clock
        rate = (self.step - first_step) / (time.perf_counter() - started)
        values["images_per_second"] = rate * self.steps.global_batch_size
        values["learning_rate"] = self.steps.lr_scheduler.get_last_lr()[0]
        values["nonfinite_steps"] = float(self.steps.nonfinite_steps)
        values["skipped_images"] = float(self.steps.count_skipped())
        self._track(values)
        self._show(values, seconds_left=(self.max_steps - self.step) / rate)
        self._restart_clock()

    def _show(self, values: dict[str, float], seconds_left: float) -> None:
        """Shows the loss at the progress bar or, without a terminal, on a line of its own."""
        loss = f"loss {values.get('loss', math.nan):.3f}"
        if self._bar.is_shown:
            self._bar.update(0, note=loss)
            return
        speed, left = f"{values['images_per_second']:.1f} images/s", datetime.timedelta(seconds=round(seconds_left))
        self._say(f"step {self.step}/{self.max_steps}: {loss}, {speed}, {left} left")

    def _track(self, values: dict[str, float]) -> None:
        try:
            self.accelerator.log(values, step=self.step)
        except OSError as error:  # a missing line must not end the run
            self._say(f"step {self.step} could not be logged: {error}; training goes on.")

    def _validate(self) -> None:
        """Validates the averaged weights on the main process and tells every process the metrics."""
        with self._averaged():
            metrics = self.processes.from_main(self._validate_here)
        warning = self.stage.observe(self.step, metrics)
        if warning:
            self._say(f"warning: {warning}")
        self._restart_clock()

    def _validate_here(self) -> dict[str, float]:
        self.steps.model.eval()
        metrics, picture = self.stage.validate(self.accelerator, self.step)
        self.steps.set_train_mode()
        self._keep_picture(picture)
        self._track({f"validation/{name}": value for name, value in metrics.items()})
        self._say(f"step {self.step}: " + ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
        return metrics

    @contextmanager
    def _averaged(self, number: int = 0) -> Iterator[None]:
        """Gives the stage of the main process averaged weights in a `with` block; every process must enter it."""
        if is_sharding(self.accelerator):
            divided = self.stage.models
            self.stage.models = self._whole_models(number)
            try:
                yield
            finally:
                self.stage.models = divided
        elif self.accelerator.is_main_process:
            with self.steps.averages.applied(number):
                yield
        else:
            yield

    def _result_folders(self) -> list[str]:
        """For each average, where the result of the training goes in the output folder: the first one to its top."""
        return ["", *(profile.name for profile in self.steps.averages.profiles[1:])]

    def _whole_models(self, number: int) -> dict[str, ModelMixin]:
        """Models that the main process can use alone; on the others, those with the divided weights."""
        models = {}
        for name, model in self.stage.models.items():
            weights = cpu_copy(self.steps.averages.weights(name, number), self.accelerator, keep=True)
            is_main = self.accelerator.is_main_process
            models[name] = whole_model(model, weights, self.accelerator.device) if is_main else model
        return models

    def _keep_picture(self, picture: Image.Image) -> None:
        path = self.output_dir / "samples" / f"step-{self.step:07d}.png"
        try:
            with whole_file(path) as temporary:
                picture.save(temporary, "PNG")
        except OSError as error:
            self._say(f"{path} could not be written: {error}; training goes on.")
        try:
            log_picture(self.accelerator.trackers, "validation/picture", picture, self.step)
        except OSError as error:
            self._say(f"the picture of step {self.step} could not be logged: {error}; training goes on.")

    def _say(self, message: str, everywhere: bool = False) -> None:
        if everywhere or self.accelerator.is_main_process:
            self._bar.write(message)

    # ------------------------------------------------------------------------------------------------------------
    # Checkpoints
    # ------------------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        state = {
            "step": self.step,
            "seed": self.args.seed,
            "global_batch_size": self.steps.global_batch_size,
            **self.steps.state_dict(),
            "means": self.means.state_dict(self.accelerator),
            "stage": self.stage.state_dict(),
        }
        self.checkpoints.save(self.step, state)

    def _periodic_checkpoint(self) -> None:
        try:
            self._checkpoint()
            self._push()
        except OSError as error:  # a failed checkpoint must not end the run; earlier ones remain
            self._say(f"{error}; training goes on with the earlier checkpoints.")
        self._restart_clock()

    def _finish(self) -> None:
        self._checkpoint()
        self.checkpoints.finish()
        for number, subfolder in enumerate(self._result_folders()):
            with self._averaged(number):
                self.checkpoints.save_models(self.stage.save, subfolder)
        self._say(f"Trained to step {self.step}: {self.output_dir}")
        self._pusher.wait()
        self._push()
        self.processes.from_main(self._pusher.finish)

    def _push(self) -> None:
        if self.args.push_to_hub:
            with self._averaged():
                self.processes.from_main(lambda: self._pusher.push(self.step, self.stage.save))

    def _resume(self) -> None:
        start = self.start
        if start.checkpoint is not None:
            with self.processes.together():
                self._load(start.checkpoint, start.state)
            self._say(f"Resumed {start.checkpoint} at step {self.step}.")

    def _load(self, folder: Path, state: dict[str, Any]) -> None:
        self.checkpoints.load(folder)
        apply_arguments(self.args, self.steps.optimizer, self.steps.lr_scheduler.scheduler)
        self.step = state["step"]
        self.steps.load_state_dict(state)
        self.means.load_state_dict(state.get("means", {}), self.accelerator.device)
        self.stage.load_state_dict(state["stage"])
