"""The training loop of both stages: accelerate for processes, precision, state and trackers."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ul_tokenizer.data.crops import CropBatch, DrawSampler, RandomCropDataset, collate_crops
from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.checkpoints import Checkpoints, find_checkpoint
from ul_tokenizer.training.randomness import DROPOUT, derived_seed
from ul_tokenizer.training.tracking import JsonLinesTracker, RunningMeans

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training can't go on; the message is one sentence for the user."""


class Stage(Protocol):
    """What is particular to a stage."""

    model: nn.Module  # what is prepared: one module, so that every gradient is reduced across processes
    models: dict[str, ModelMixin]  # the parts of it that are saved, by folder name
    dataset: RandomCropDataset

    def loss(self, model: nn.Module, batch: CropBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar to minimise and values to log, for one micro-batch."""

    def validate(self, accelerator: Accelerator, step: int) -> tuple[dict[str, float], Image.Image]:
        """Values and a picture; runs on the main process only, with the averaged weights in place."""

    def observe(self, step: int, metrics: dict[str, float]) -> None:
        """Takes note of validation values, on every process."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state beside the weights."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it."""

    def save(self, folder: Path) -> None:
        """Writes the trained models as a loadable repository."""


class Draws:
    """Which samples of the run a micro-batch holds."""

    def __init__(self, first: int, batch_size: int, accelerator: Accelerator, step: int) -> None:
        self.step = step
        self.num_processes, self.process_index = accelerator.num_processes, accelerator.process_index
        self.first, self.global_batch_size = first, batch_size * self.num_processes

    @property
    def local(self) -> range:
        """Draw numbers of this process's samples."""
        return range(self.first + self.process_index, self.first + self.global_batch_size, self.num_processes)

    def pick(self, values_of_global_batch: Tensor) -> Tensor:
        """This process's entries of a tensor over the global batch."""
        return values_of_global_batch[self.process_index :: self.num_processes]


class StopSignal:
    """SIGTERM and SIGINT as a flag that is read between steps; a second one acts at once."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(number, self._previous[signal.Signals(number)])

    def received(self, accelerator: Accelerator) -> bool:
        """Whether any process got one; all agree."""
        if accelerator.num_processes == 1:
            return self.name is not None
        flag = torch.tensor(float(self.name is not None), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)


class Trainer:
    """Runs a stage from its last checkpoint to its last step."""

    def __init__(self, args: TrainingArguments, stage: Stage, accelerator: Accelerator) -> None:
        self.args, self.stage, self.accelerator = args, stage, accelerator
        self.output_dir = Path(args.output_dir)
        self.global_batch_size = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
        self.max_steps = self._max_steps()
        self.step = 0
        self.nonfinite_steps = 0  # in all
        self.nonfinite_in_a_row = 0
        self.skipped_images = 0
        torch.backends.cuda.matmul.allow_tf32 = args.allow_tf32
        self._prepare()

    def _max_steps(self) -> int:
        if self.args.max_train_steps is not None:
            return self.args.max_train_steps
        assert self.args.num_train_epochs is not None  # TrainingArguments sees to it that one is given
        return math.ceil(self.args.num_train_epochs * len(self.stage.dataset) / self.global_batch_size)

    def _prepare(self) -> None:
        args, stage, accelerator = self.args, self.stage, self.accelerator
        stage.model.to(accelerator.device, memory_format=torch.channels_last)
        parameters = [p for p in stage.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters,
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.adam_weight_decay,
            fused=True,
        )
        lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=self.max_steps,
        )
        self.averages = {
            name: EMAModel(
                list(model.parameters()),
                decay=args.ema_decay,
                use_ema_warmup=True,
                power=0.75,
                foreach=True,
                model_cls=type(model),
                model_config=model.config,
            )
            for name, model in (stage.models.items() if args.use_ema else ())
        }
        if args.gradient_checkpointing:
            for model in stage.models.values():
                model.enable_gradient_checkpointing()
        if args.compile:
            for model in stage.models.values():
                model.compile_repeated_blocks()
        self.model, self.optimizer, self.lr_scheduler = accelerator.prepare(stage.model, optimizer, lr_scheduler)
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
            OSError: the final weights can't be written.
        """
        self._resume()
        self._start_trackers()
        stop = StopSignal()
        bar = tqdm(
            total=self.max_steps,
            initial=self.step,
            unit="step",
            dynamic_ncols=True,
            disable=not self.accelerator.is_main_process,
        )
        means, started, images = RunningMeans(), time.perf_counter(), 0
        batches = self._batches()
        while self.step < self.max_steps:
            means.add(self._train_step(batches))
            self.step += 1
            images += self.global_batch_size
            bar.update()
            if self.step % self.args.logging_steps == 0 or self.step == self.max_steps:
                values = means.take(self.accelerator)
                values["images_per_second"] = images / (time.perf_counter() - started)
                self._log(values, bar)
                started, images = time.perf_counter(), 0
            if self.step % self.args.validation_steps == 0 or self.step == self.max_steps:
                self._validate()
                started, images = time.perf_counter(), 0
            if stop.received(self.accelerator):
                self._checkpoint()
                self._say(f"{stop.name or 'a signal'} received: saved checkpoint-{self.step}, stopping.")
                break
            if self.step % self.args.checkpointing_steps == 0:
                self._periodic_checkpoint()
        else:
            self._finish()
        bar.close()
        self.accelerator.end_training()

    def _resume(self) -> None:
        wanted = self.args.resume_from_checkpoint
        folder = find_checkpoint(self.output_dir, wanted) if wanted else None
        if folder is None:
            return
        state = self.checkpoints.load(folder)
        if state["global_batch_size"] != self.global_batch_size or state["seed"] != self.args.seed:
            raise ValueError(
                f"the checkpoint was made with global batch size {state['global_batch_size']} and seed {state['seed']}, "
                f"got {self.global_batch_size} and {self.args.seed}: resuming would repeat or skip samples."
            )
        self.step, self.nonfinite_steps = state["step"], state["nonfinite_steps"]
        self.skipped_images = state["skipped_images"]
        self.stage.load_state_dict(state["stage"])
        self._say(f"Resumed {folder} at step {self.step}.")

    def _start_trackers(self) -> None:
        self.accelerator.init_trackers(self.args.tracker_project_name)
        tracker = JsonLinesTracker(self.output_dir / "metrics.jsonl", self.step)
        self.accelerator.trackers.append(tracker)
        if self.accelerator.is_main_process:
            (self.output_dir / "config.yaml").write_text(self.args.to_yaml(), encoding="utf-8")

    def _batches(self) -> Iterator[CropBatch]:
        args, accelerator = self.args, self.accelerator
        sampler = DrawSampler(
            start=self.step * self.global_batch_size,
            stop=self.max_steps * self.global_batch_size,
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
        )
        loader = DataLoader(
            self.stage.dataset,
            batch_size=args.train_batch_size,
            sampler=sampler,
            num_workers=args.dataloader_num_workers,
            collate_fn=collate_crops,
            pin_memory=accelerator.device.type == "cuda",
            persistent_workers=args.dataloader_num_workers > 0,
        )
        return iter(loader)

    # ------------------------------------------------------------------------------------------------------------
    # One step
    # ------------------------------------------------------------------------------------------------------------

    def _train_step(self, batches: Iterator[CropBatch]) -> dict[str, Tensor]:
        """One optimiser step over all its micro-batches; returns values to log."""
        micro_steps = self.args.gradient_accumulation_steps
        totals: dict[str, Tensor] = {}
        self.model.train()
        for micro_step in range(micro_steps):
            self.accelerator.gradient_state._set_sync_gradients(micro_step == micro_steps - 1)
            for name, value in self._micro_step(next(batches), micro_step).items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value / micro_steps
        totals.update(self._update())
        return totals

    def _micro_step(self, batch: CropBatch, micro_step: int) -> dict[str, Tensor]:
        accelerator = self.accelerator
        self._note_skipped(batch["skipped"])
        batch["pixel_values"] = batch["pixel_values"].to(accelerator.device, non_blocking=True)
        batch_size = len(batch["pixel_values"])
        first = self.step * self.global_batch_size + micro_step * batch_size * accelerator.num_processes
        draws = Draws(first, batch_size, accelerator, self.step)
        torch.manual_seed(derived_seed(self.args.seed, DROPOUT, first, accelerator.process_index))
        with self._no_sync_unless_last(), accelerator.autocast():
            loss, values = self.stage.loss(self.model, batch, draws)
            accelerator.backward(loss)  # divides by the number of micro-batches
        return {"loss": loss.detach(), **values}

    def _no_sync_unless_last(self) -> Any:
        if self.accelerator.sync_gradients:
            return torch.enable_grad()
        return self.accelerator.no_sync(self.model)

    def _update(self) -> dict[str, Tensor]:
        """Clips, steps and averages; a non-finite gradient is counted and its step skipped."""
        args, accelerator = self.args, self.accelerator
        norms = {f"grad_norm/{name}": _grad_norm(model) for name, model in self._parts()}
        norm = accelerator.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
            self.nonfinite_in_a_row = 0
            for name, average in self.averages.items():
                average.step(self.stage.models[name].parameters())
        else:
            self._count_nonfinite()
            norms, norm = {}, None
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norms if norm is None else {**norms, "grad_norm": norm.detach()}

    def _parts(self) -> list[tuple[str, nn.Module]]:
        """Trainable parts of the prepared module, for logging."""
        module = self.accelerator.unwrap_model(self.model)
        return [(n, m) for n, m in module.named_children() if any(p.requires_grad for p in m.parameters())]

    def _count_nonfinite(self) -> None:
        self.nonfinite_steps += 1
        self.nonfinite_in_a_row += 1
        self._say(f"step {self.step}: non-finite gradient, step skipped ({self.nonfinite_steps} so far).")
        if self.nonfinite_in_a_row >= self.args.max_nonfinite_steps:
            raise TrainingError(
                f"gradients were non-finite in {self.nonfinite_in_a_row} steps in a row at step {self.step}; "
                "lower --learning_rate or look at the data."
            )

    def _note_skipped(self, skipped: list[str]) -> None:
        for reason in skipped:
            self.skipped_images += 1
            self._say(f"skipped {reason}", everywhere=True)

    # ------------------------------------------------------------------------------------------------------------
    # Between steps
    # ------------------------------------------------------------------------------------------------------------

    def _log(self, values: dict[str, float], bar: tqdm) -> None:
        values["learning_rate"] = self.lr_scheduler.get_last_lr()[0]
        values["nonfinite_steps"] = float(self.nonfinite_steps)
        values["skipped_images"] = float(self.skipped_images)
        self.accelerator.log(values, step=self.step)
        bar.set_postfix(loss=f"{values.get('loss', math.nan):.3f}", refresh=False)

    def _validate(self) -> None:
        """On the main process, with the averaged weights; every process learns the result."""
        metrics: list[dict[str, float]] = [{}]
        if self.accelerator.is_main_process:
            self._swap_in_averages()
            self.model.eval()
            metrics[0], picture = self.stage.validate(self.accelerator, self.step)
            self._swap_out_averages()
            folder = self.output_dir / "samples"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"step-{self.step:07d}.png")
            self.accelerator.log({f"validation/{k}": v for k, v in metrics[0].items()}, step=self.step)
            self._say(f"step {self.step}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics[0].items()))
        if self.accelerator.num_processes > 1:
            torch.distributed.broadcast_object_list(metrics, src=0)
        self.stage.observe(self.step, metrics[0])

    def _swap_in_averages(self) -> None:
        for name, average in self.averages.items():
            average.store(self.stage.models[name].parameters())
            average.copy_to(self.stage.models[name].parameters())

    def _swap_out_averages(self) -> None:
        for name, average in self.averages.items():
            average.restore(self.stage.models[name].parameters())

    def _checkpoint(self) -> None:
        state = {
            "step": self.step,
            "seed": self.args.seed,
            "global_batch_size": self.global_batch_size,
            "nonfinite_steps": self.nonfinite_steps,
            "skipped_images": self.skipped_images,
            "stage": self.stage.state_dict(),
        }
        self.checkpoints.save(self.step, state)

    def _periodic_checkpoint(self) -> None:
        try:
            self._checkpoint()
        except OSError as error:  # the run is worth more than this checkpoint; earlier ones stand
            self._say(f"{error}; training goes on with the earlier checkpoints.")

    def _finish(self) -> None:
        self._checkpoint()
        if self.accelerator.is_main_process:
            self._swap_in_averages()
            self.stage.save(self.output_dir)
            self._swap_out_averages()
        self._say(f"Trained to step {self.step}: {self.output_dir}")
        self.accelerator.wait_for_everyone()

    def _say(self, message: str, everywhere: bool = False) -> None:
        if everywhere or self.accelerator.is_main_process:
            tqdm.write(message)


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """The accelerator as the arguments say; trackers' own files go under `output_dir/logs`."""
    return Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=str(Path(args.output_dir, "logs"))),
        dataloader_config=DataLoaderConfiguration(),
        step_scheduler_with_optimizer=False,
    )


def _grad_norm(module: nn.Module) -> Tensor:
    """L2 norm of a module's gradients before clipping."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
