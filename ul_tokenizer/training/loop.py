"""The training loop of both stages: accelerate for processes, precision, state and trackers."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast_object_list, send_to_device
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ul_tokenizer import _compat
from ul_tokenizer.randomness import Stream, derived_seed
from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.averages import Averages
from ul_tokenizer.training.checkpoints import Checkpoints, find_checkpoint, list_checkpoints, read_state, step_of
from ul_tokenizer.training.draws.crops import DrawSampler
from ul_tokenizer.training.draws.noise import Draws
from ul_tokenizer.training.optimization import (
    apply_arguments,
    gradient_norm,
    is_trained,
    make_lr_scheduler,
    make_optimizer,
)
from ul_tokenizer.training.pushing import Pusher
from ul_tokenizer.training.signals import StopSignal, leave_signals_to_the_main_process
from ul_tokenizer.training.tracking import JsonLinesTracker, RunningMeans


class TrainingError(RuntimeError):
    """Training can't go on; the message is one sentence for the user."""


Batch = dict[str, Any]  # tensors by name, and what was skipped to make it: a list of sentences under "skipped"
Arguments = TypeVar("Arguments", bound=TrainingArguments)


class Draw(Protocol):
    """The samples of a run; any number has one, also above the length, which is that of an epoch."""

    def __len__(self) -> int:
        """Samples in an epoch."""

    def __getitem__(self, n: int, /) -> Any:
        """Draw n since the start of the training, a pure function of n."""


class Stage(Protocol):
    """What is particular to a stage."""

    model: nn.Module  # what is prepared: one module, so that every gradient is reduced across processes
    models: dict[str, ModelMixin]  # the parts of it that are saved, by folder name

    @property
    def dataset(self) -> Draw:
        """What is trained on."""

    def collate(self, samples: list[Any]) -> Any:
        """Samples of the data set → a `Batch`."""

    def prepare(self, accelerator: Accelerator) -> None:
        """What is to be done once before training, so that what is wrong shows then; models are on their device."""

    def describe(self) -> str:
        """Sizes of networks and data, a YAML comment each."""

    def loss(self, model: nn.Module, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar to minimise and values to log, for one micro-batch."""

    def validate(self, accelerator: Accelerator, step: int) -> tuple[dict[str, float], Image.Image]:
        """Values and a picture; runs on the main process only, with the averaged weights in place.

        It must use the models themselves, not the prepared module, whose forward waits for the other processes.
        """

    def observe(self, step: int, metrics: dict[str, float]) -> str | None:
        """Takes note of validation values, on every process; returns a warning for the user."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state beside the weights."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it."""

    def save(self, folder: Path) -> None:
        """Writes the trained models as a loadable repository."""


class Trainer:
    """Runs a stage from its last checkpoint to its last step.

    Args:
        args: the run's.
        stage: what to train; its models are moved to the accelerator's device.
        accelerator: as `make_accelerator` makes it.
    """

    def __init__(self, args: TrainingArguments, stage: Stage, accelerator: Accelerator) -> None:
        self.args, self.stage, self.accelerator = args, stage, accelerator
        self.output_dir = Path(args.output_dir)
        self.global_batch_size = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
        self.max_steps = self._max_steps()
        self.step = 0
        self.nonfinite_steps = 0  # in all
        self.nonfinite_in_a_row = 0
        self.skipped_images = 0  # on all processes, when they last agreed
        self._skipped_here = 0  # on this one since then
        self._said: set[str] = set()
        self.means = RunningMeans()
        self._pusher = Pusher(args, accelerator.is_main_process, self._say)
        self._restart_clock()
        self._prepare()

    def _max_steps(self) -> int:
        if self.args.max_train_steps is not None:
            return self.args.max_train_steps
        assert self.args.num_train_epochs is not None  # TrainingArguments sees to it that one is given
        return math.ceil(self.args.num_train_epochs * len(self.stage.dataset) / self.global_batch_size)

    def _prepare(self) -> None:
        args, stage, accelerator = self.args, self.stage, self.accelerator
        if accelerator.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.allow_tf32
        stage.model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(args, stage.model)
        lr_scheduler = make_lr_scheduler(args, optimizer, self.max_steps)
        for model in stage.models.values():
            if args.gradient_checkpointing:
                model.enable_gradient_checkpointing()
            if args.compile:
                model.compile_repeated_blocks()
        self.model, self.optimizer, self.lr_scheduler = accelerator.prepare(stage.model, optimizer, lr_scheduler)
        self.averages = Averages(stage.models, args.ema_decay if args.use_ema else None)
        self.checkpoints = Checkpoints(
            accelerator, stage.models, self.averages, self.output_dir, args.checkpoints_total_limit
        )

    # ------------------------------------------------------------------------------------------------------------
    # The run
    # ------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Trains to the last step, or saves and returns at a signal.

        Raises:
            TrainingError: losses stay non-finite.
            ValueError: the checkpoint to resume doesn't fit, or `output_dir` holds another run's.
            OSError: the last checkpoint or the trained model can't be written.
        """
        try:
            self._pusher.open()
            self.stage.prepare(self.accelerator)
            self._resume()
            self._start_trackers()
            with StopSignal() as stop, self._progress_bar() as bar:
                if self._train(stop, bar):
                    self._finish()
                else:
                    self._checkpoint()
                    self._say(f"{stop.name or 'A signal'} received: saved checkpoint-{self.step}, stopping.")
        finally:
            self._end()

    def _end(self) -> None:
        """Lets DDP go before its process group, and ends the trackers."""
        self._pusher.wait()
        # As the group's last owner, DDP would hold Python's lock while it waits for gloo's threads to end, and those
        # need the lock to free the tensors of the last exchange: some runs would hang at their end.
        del self.model
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def _train(self, stop: StopSignal, bar: tqdm) -> bool:
        """Whether the last step was reached; False at a signal."""
        batches = self._batches()
        self._set_train_mode()
        self._restart_clock()
        while self.step < self.max_steps:
            self.means.add(self._train_step(batches))
            self.step += 1
            bar.update()
            if self._is_due(self.args.logging_steps):
                self._log(bar)
            if self._is_due(self.args.validation_steps):
                self._validate()
            if stop.received(self.accelerator):
                return False
            if self.step % self.args.checkpointing_steps == 0:
                self._periodic_checkpoint()
        return True

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.max_steps

    def _progress_bar(self) -> tqdm:
        return tqdm(
            total=self.max_steps,
            initial=self.step,
            unit="step",
            dynamic_ncols=True,
            # In a log file it would be one endless line; `_log` writes lines there.
            disable=not (self.accelerator.is_main_process and sys.stderr.isatty()),
        )

    def _start_trackers(self) -> None:
        self.accelerator.init_trackers(self.args.tracker_project_name)
        tracker = JsonLinesTracker(self.output_dir / "metrics.jsonl", self.step)
        self.accelerator.trackers.append(tracker)
        if self.accelerator.is_main_process:
            (self.output_dir / "config.yaml").write_text(self.args.to_yaml(), encoding="utf-8")

    def _batches(self) -> Iterator[Batch]:
        args, accelerator = self.args, self.accelerator
        sampler = DrawSampler(
            start=self.step * self.global_batch_size,
            stop=max(self.step, self.max_steps) * self.global_batch_size,
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
        )
        loader: DataLoader[Any] = DataLoader(
            self.stage.dataset,  # type: ignore[arg-type]  # a map-style data set by what it does
            batch_size=args.train_batch_size,
            sampler=sampler,
            num_workers=args.dataloader_num_workers,
            worker_init_fn=leave_signals_to_the_main_process,
            collate_fn=self.stage.collate,
            pin_memory=accelerator.device.type == "cuda",
        )
        return iter(loader)

    # ------------------------------------------------------------------------------------------------------------
    # One step
    # ------------------------------------------------------------------------------------------------------------

    def _set_train_mode(self) -> None:
        """Frozen parts stay in evaluation mode: the others learn from what these do in use."""
        self.model.train()
        for part in self.stage.model.children():
            part.train(is_trained(part))

    def _train_step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """One optimiser step over all its micro-batches; returns values to log."""
        micro_steps = self.args.gradient_accumulation_steps
        totals: dict[str, Tensor] = {}
        for micro_step in range(micro_steps):
            with self.accelerator.accumulate(self.model):
                for name, value in self._micro_step(next(batches), micro_step).items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value / micro_steps
        norms = self._update()
        return {**totals, **norms} if norms else {}

    def _micro_step(self, batch: Batch, micro_step: int) -> dict[str, Tensor]:
        args, accelerator = self.args, self.accelerator
        self._note_skipped(batch.pop("skipped"))
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        draws = Draws.of(self.step, micro_step, accelerator, args.train_batch_size, args.gradient_accumulation_steps)
        torch.manual_seed(derived_seed(args.seed, Stream.DROPOUT, draws.local.start))
        with accelerator.autocast():
            loss, values = self.stage.loss(self.model, batch, draws)
        accelerator.backward(loss)  # divides by the number of micro-batches
        return {"loss": loss.detach(), **values}

    def _update(self) -> dict[str, Tensor]:
        """Clips, steps and averages; returns gradient norms, or nothing if they are not finite: no step then."""
        accelerator = self.accelerator
        accelerator.unscale_gradients(self.optimizer)
        norms = {f"grad_norm/{name}": gradient_norm(part) for name, part in self._trained_parts()}
        norms["grad_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        is_finite = bool(torch.isfinite(norms["grad_norm"]))
        if is_finite or accelerator.scaler is not None:  # a scaler skips the step itself, and then scales less
            self.optimizer.step()
        if is_finite:
            self.averages.step()
            self.nonfinite_in_a_row = 0
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        if not is_finite:
            self._count_nonfinite()
        return norms if is_finite else {}

    def _trained_parts(self) -> list[tuple[str, nn.Module]]:
        return [(name, part) for name, part in self.stage.model.named_children() if is_trained(part)]

    def _count_nonfinite(self) -> None:
        self.nonfinite_steps += 1
        self.nonfinite_in_a_row += 1
        self._say(f"step {self.step + 1}: non-finite gradient, step skipped ({self.nonfinite_steps} so far).")
        if self.nonfinite_in_a_row >= self.args.max_nonfinite_steps:
            raise TrainingError(
                f"gradients were non-finite in {self.nonfinite_in_a_row} steps in a row at step {self.step + 1}; "
                "lower --learning_rate or look at the data."
            )

    def _note_skipped(self, skipped: list[str]) -> None:
        for reason in skipped:
            self._skipped_here += 1
            if reason not in self._said:  # once, and not in every epoch
                self._said.add(reason)
                self._say(f"skipped {reason}", everywhere=True)

    # ------------------------------------------------------------------------------------------------------------
    # Between steps
    # ------------------------------------------------------------------------------------------------------------

    def _restart_clock(self) -> None:
        self._clock = time.perf_counter(), self.step

    def _log(self, bar: tqdm) -> None:
        values = self.means.take(self.accelerator)
        started, first_step = self._clock
        rate = (self.step - first_step) / (time.perf_counter() - started)
        values["images_per_second"] = rate * self.global_batch_size
        values["learning_rate"] = self.lr_scheduler.get_last_lr()[0]
        values["nonfinite_steps"] = float(self.nonfinite_steps)
        values["skipped_images"] = float(self._count_skipped())
        self._track(values)
        loss = f"loss {values.get('loss', math.nan):.3f}"
        bar.set_postfix_str(loss, refresh=False)
        if bar.disable:
            left = tqdm.format_interval((self.max_steps - self.step) / rate)
            self._say(
                f"step {self.step}/{self.max_steps}: {loss}, {values['images_per_second']:.1f} images/s, {left} left"
            )
        self._restart_clock()

    def _track(self, values: dict[str, float]) -> None:
        try:
            self.accelerator.log(values, step=self.step)
        except OSError as error:  # the run is worth more than a line of its log
            self._say(f"step {self.step} could not be logged: {error}; training goes on.")

    def _count_skipped(self) -> int:
        here = torch.tensor(float(self._skipped_here), device=self.accelerator.device)
        self.skipped_images += int(self.accelerator.reduce(here, reduction="sum"))
        self._skipped_here = 0
        return self.skipped_images

    def _validate(self) -> None:
        """On the main process, with the averaged weights; every process learns the result."""
        metrics: list[dict[str, float]] = [{}]
        if self.accelerator.is_main_process:
            self.model.eval()
            with self.averages.applied():
                metrics[0], picture = self.stage.validate(self.accelerator, self.step)
            self._set_train_mode()
            self._keep_picture(picture)
            self._track({f"validation/{name}": value for name, value in metrics[0].items()})
            self._say(f"step {self.step}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics[0].items()))
        broadcast_object_list(metrics)
        warning = self.stage.observe(self.step, metrics[0])
        if warning:
            self._say(f"warning: {warning}")
        self._restart_clock()

    def _keep_picture(self, picture: Image.Image) -> None:
        path = self.output_dir / "samples" / f"step-{self.step:07d}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
        except OSError as error:
            path.unlink(missing_ok=True)
            self._say(f"{path} could not be written: {error}; training goes on.")

    def _say(self, message: str, everywhere: bool = False) -> None:
        if everywhere or self.accelerator.is_main_process:
            tqdm.write(message, file=sys.stderr)

    # ------------------------------------------------------------------------------------------------------------
    # Checkpoints
    # ------------------------------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        state = {
            "step": self.step,
            "seed": self.args.seed,
            "global_batch_size": self.global_batch_size,
            "nonfinite_steps": self.nonfinite_steps,
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "skipped_images": self._count_skipped(),
            "means": self.means.state_dict(self.accelerator),
            "stage": self.stage.state_dict(),
        }
        self.checkpoints.save(self.step, state)

    def _periodic_checkpoint(self) -> None:
        try:
            self._checkpoint()
            self._push()
        except OSError as error:  # the run is worth more than this checkpoint; earlier ones stand
            self._say(f"{error}; training goes on with the earlier checkpoints.")
        self._restart_clock()

    def _finish(self) -> None:
        self._checkpoint()
        self.checkpoints.save_models(self.stage.save)
        self._say(f"Trained to step {self.step}: {self.output_dir}")
        self._pusher.wait()
        self._push()
        self._pusher.finish()

    def _push(self) -> None:
        if self._pusher.is_on:
            with self.averages.applied():
                self._pusher.push(self.step, self.stage.save)

    def _resume(self) -> None:
        wanted = self.args.resume_from_checkpoint
        folder = find_checkpoint(self.output_dir, wanted) if wanted else None
        state = read_state(folder) if folder else {"step": 0}
        self._refuse_later_checkpoints(state["step"])
        if folder is not None:
            self._load(folder, state)
            self._say(f"Resumed {folder} at step {self.step}.")

    def _refuse_later_checkpoints(self, start: int) -> None:
        """Two runs in one folder would mix their checkpoints, and the limit would remove the wrong ones."""
        later = [path.name for path in list_checkpoints(self.output_dir) if step_of(path) > start]
        if later:
            raise ValueError(
                f"--output_dir {self.output_dir} holds {later[-1]}, and this run would start at step {start}: "
                "use --resume_from_checkpoint latest, or another folder."
            )

    def _load(self, folder: Path, state: dict[str, Any]) -> None:
        for name, here in (("global_batch_size", self.global_batch_size), ("seed", self.args.seed)):
            if state[name] != here:
                raise ValueError(
                    f"{folder} was made with a {name.replace('_', ' ')} of {state[name]}, got {here}: "
                    "resuming would repeat or skip samples."
                )
        self.checkpoints.load(folder)
        apply_arguments(self.args, self.optimizer, self.lr_scheduler.scheduler)
        self.step, self.nonfinite_steps = state["step"], state["nonfinite_steps"]
        self.nonfinite_in_a_row = state.get("nonfinite_in_a_row", 0)
        self.skipped_images = state["skipped_images"]
        self.means.load_state_dict(state.get("means", {}), self.accelerator.device)
        self.stage.load_state_dict(state["stage"])


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """The accelerator as the arguments say; trackers' own files go under `output_dir/logs`.

    Raises:
        ValueError: a tracker that is unknown or not installed, or a precision that the device lacks.
    """
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else torchrun's processes would not know of one another there
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=str(Path(args.output_dir, "logs"))),
        step_scheduler_with_optimizer=False,
    )
    if args.report_to and not accelerator.log_with:
        raise ValueError(f"--report_to {args.report_to} needs the package {args.report_to}, which is not installed.")
    return accelerator


def precision_warning(mixed_precision: str, device: torch.device) -> str | None:
    """Says so where a precision is emulated: on such CPUs bf16 takes many times as long as fp32."""
    if mixed_precision == "no" or device.type != "cpu":
        return None
    if _compat.is_native_on_cpu(mixed_precision) is not False:
        return None
    return f"this CPU has no {mixed_precision} arithmetic, --mixed_precision no will be many times as fast."


def run_stage(args: Arguments, make_stage: Callable[[Arguments], Stage]) -> int:
    """Trains a stage, or says with `--dry_run` what it would train; returns the exit status."""
    try:
        accelerator = make_accelerator(args)
        if accelerator.is_main_process and (warning := precision_warning(args.mixed_precision, accelerator.device)):
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        stage = make_stage(args)
        if args.dry_run:
            accelerator.print(args.to_yaml() + stage.describe())
        else:
            Trainer(args, stage, accelerator).run()
    except (TrainingError, ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:  # before the first step, or a second one
        print("interrupted.", file=sys.stderr, flush=True)
        return 130
    return 0
