"""One optimiser step: batches in, gradients out, weights and averages moved.

A step never waits for the device. Whether a gradient was finite is decided there, and the host reads it one step later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ul_tokenizer import _compat
from ul_tokenizer.randomness import Stream, derived_seed
from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.data import loader_options
from ul_tokenizer.training.draws.crops import DrawSampler
from ul_tokenizer.training.draws.noise import Draws
from ul_tokenizer.training.engine.accelerator import global_batch_size
from ul_tokenizer.training.engine.averages import Averages, profiles
from ul_tokenizer.training.engine.clipping import clip_gradients
from ul_tokenizer.training.engine.errors import TrainingError
from ul_tokenizer.training.engine.learning_rates import make_lr_scheduler
from ul_tokenizer.training.engine.optimization import is_trained, make_optimizer
from ul_tokenizer.training.engine.readback import Readback
from ul_tokenizer.training.engine.recomputation import checkpointing_function
from ul_tokenizer.training.engine.sharding import is_sharding, prepare_for_sharding
from ul_tokenizer.training.engine.signals import leave_signals_to_the_main_process
from ul_tokenizer.training.engine.stage import Batch, Stage


class Stepper:
    """Makes the optimiser steps of a stage.

    Args:
        args: the arguments of the run.
        stage: the stage to train; its models are moved to the accelerator's device.
        accelerator: the result of `make_accelerator`.
        max_steps: the last step, for the schedule of the learning rate.
        say: prints a message for the user; with `everywhere`, from every process.
    """

    def __init__(
        self,
        args: TrainingArguments,
        stage: Stage,
        accelerator: Accelerator,
        max_steps: int,
        say: Callable[..., None],
    ) -> None:
        self.args, self.stage, self.accelerator, self.max_steps, self.say = args, stage, accelerator, max_steps, say
        self._nonfinite_steps = 0  # since the start of the training
        self._nonfinite_in_a_row = 0
        self._unread: list[tuple[int, Readback]] = []  # numbers of steps, and whether their gradients were finite
        self.skipped_images = 0  # on all processes, as last counted
        self._skipped_here = 0  # on this process since then
        self._reported: set[str] = set()
        if accelerator.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.allow_tf32
            torch.backends.cudnn.benchmark = args.cudnn_benchmark
        stage.model.to(accelerator.device)
        if not is_sharding(accelerator):  # FSDP divides contiguous weights only
            stage.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(args, stage.model)
        lr_scheduler = make_lr_scheduler(args, optimizer, max_steps)
        self._prepare_models()
        prepare_for_sharding(accelerator, stage.model, stage.models)
        self.model, self.optimizer, self.lr_scheduler = accelerator.prepare(stage.model, optimizer, lr_scheduler)
        self.averages = Averages(stage.models, profiles(args.ema_decay, args.ema_std) if args.use_ema else [])

    def _prepare_models(self) -> None:
        args = self.args
        for model in self.stage.models.values():
            if args.gradient_checkpointing:
                model.enable_gradient_checkpointing(checkpointing_function(args.checkpointing_policy))
        if args.compile:  # with the loss, so that what lies between convolutions becomes one kernel as well
            self.stage.model.compile()

    @property
    def global_batch_size(self) -> int:
        """Samples of a step, on all processes together."""
        return global_batch_size(self.args, self.accelerator)

    def batches(self, step: int) -> Iterator[Batch]:
        """The batches of this process, from the first one of a step to the last one of the run."""
        args, accelerator = self.args, self.accelerator
        sampler = DrawSampler(
            start=step * self.global_batch_size,
            stop=max(step, self.max_steps) * self.global_batch_size,
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
        )
        loader: DataLoader[Any] = DataLoader(
            self.stage.dataset,  # type: ignore[arg-type]  # it acts as a map-style data set
            batch_size=args.train_batch_size,
            sampler=sampler,
            **loader_options(args),
            worker_init_fn=leave_signals_to_the_main_process,
            collate_fn=self.stage.collate,
            pin_memory=accelerator.device.type == "cuda",
        )
        return iter(loader)

    def set_train_mode(self) -> None:
        """Frozen parts stay in evaluation mode, so that the others learn from what they do in use."""
        self.model.train()
        for part in self.stage.model.children():
            part.train(is_trained(part))

    def step(self, number: int, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Makes optimiser step `number` over all its micro-batches.

        Returns:
            values to log, on the device; all are NaN if the step was skipped because of a non-finite gradient.

        Raises:
            TrainingError: gradients were non-finite in too many steps in a row.
        """
        micro_steps = self.args.gradient_accumulation_steps
        totals: dict[str, Tensor] = {}
        for micro_step in range(micro_steps):
            with self.accelerator.accumulate(self.model):
                for name, value in self._micro_step(next(batches), number, micro_step).items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value / micro_steps
        is_finite, norms = self._update()
        self._read(earlier_than=number)
        self._unread.append((number, Readback(is_finite)))
        return {name: value.where(is_finite, torch.nan) for name, value in {**totals, **norms}.items()}

    def _micro_step(self, batch: Batch, number: int, micro_step: int) -> dict[str, Tensor]:
        args, accelerator = self.args, self.accelerator
        self._note_skipped(batch.pop("skipped"))
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        draws = Draws.of(number, micro_step, accelerator, args.train_batch_size, args.gradient_accumulation_steps)
        torch.manual_seed(derived_seed(args.seed, Stream.DROPOUT, draws.local.start))
        with accelerator.autocast():
            loss, values = self.stage.loss(self.model, batch, draws)
        accelerator.backward(loss)  # divides by the number of micro-batches
        return {"loss": loss.detach(), **values}

    def _update(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Clips gradients, steps and averages; returns whether all are finite (bool tensor), and the norms."""
        accelerator = self.accelerator
        accelerator.unscale_gradients(self.optimizer)
        norms = clip_gradients(self._trained_parts(), self.args.max_grad_norm, self.args.clip_grad_norm)
        is_finite = norms["grad_norm"].isfinite()
        if self._makes_step(is_finite):
            self.optimizer.step()
        self.averages.step(is_finite.float())
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        return is_finite, norms

    def _makes_step(self, is_finite: Tensor) -> bool:
        """Whether to call the optimiser, which looks at the gradient by itself if it can."""
        if self.accelerator.scaler is not None:  # it skips the step itself and lowers its scale
            return True
        # Fused optimisers of divided weights would take the flag only if it were divided, too.
        takes_flags = not is_sharding(self.accelerator)
        if takes_flags and _compat.skip_steps_where(self.optimizer.optimizer, (~is_finite).float()):
            return True
        return bool(is_finite)  # waits for the device

    def _trained_parts(self) -> dict[str, nn.Module]:
        return {name: part for name, part in self.stage.model.named_children() if is_trained(part)}

    # ------------------------------------------------------------------------------------------------------------
    # Steps that were skipped
    # ------------------------------------------------------------------------------------------------------------

    @property
    def nonfinite_steps(self) -> int:
        """Steps that were skipped since the start of the training because of a non-finite gradient.

        Reading it waits for the last step.

        Raises:
            TrainingError: they were too many in a row.
        """
        self._read()
        return self._nonfinite_steps

    def _read(self, earlier_than: int | None = None) -> None:
        """Counts steps whose gradients have become known; the last step's only if this may wait for it."""
        while self._unread and (earlier_than is None or self._unread[0][0] < earlier_than):
            number, is_finite = self._unread.pop(0)
            if is_finite.value():
                self._nonfinite_in_a_row = 0
            else:
                self._count_nonfinite(number)

    def _count_nonfinite(self, number: int) -> None:
        self._nonfinite_steps += 1
        self._nonfinite_in_a_row += 1
        self.say(f"step {number + 1}: skipped because of a non-finite gradient ({self._nonfinite_steps} so far).")
        if self._nonfinite_in_a_row >= self.args.max_nonfinite_steps:
            raise TrainingError(
                f"gradients were non-finite in {self._nonfinite_in_a_row} steps in a row at step {number + 1}; "
                "lower --learning_rate or check the data."
            )

    # ------------------------------------------------------------------------------------------------------------
    # Samples that could not be read
    # ------------------------------------------------------------------------------------------------------------

    def _note_skipped(self, skipped: list[str]) -> None:
        for reason in skipped:
            self._skipped_here += 1
            if reason not in self._reported:  # only once, not in every epoch
                self._reported.add(reason)
                self.say(f"skipped {reason}", everywhere=True)

    def count_skipped(self) -> int:
        """How many samples all processes skipped since the start of the training; every process must call it."""
        here = torch.tensor(float(self._skipped_here), device=self.accelerator.device)
        self.skipped_images += int(self.accelerator.reduce(here, reduction="sum"))
        self._skipped_here = 0
        return self.skipped_images

    # ------------------------------------------------------------------------------------------------------------
    # State
    # ------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State beside weights, optimiser and schedule, of types that JSON can hold; every process must call it."""
        return {
            "nonfinite_steps": self.nonfinite_steps,
            "nonfinite_in_a_row": self._nonfinite_in_a_row,
            "skipped_images": self.count_skipped(),
            "optimizer": self.args.optimizer,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            ValueError: another optimiser made the checkpoint.
        """
        if state.get("optimizer", self.args.optimizer) != self.args.optimizer:
            raise ValueError(f"--optimizer must be that of the checkpoint, {state['optimizer']}.")
        self._nonfinite_steps, self.skipped_images = state["nonfinite_steps"], state["skipped_images"]
        self._nonfinite_in_a_row = state.get("nonfinite_in_a_row", 0)
