"""The loop that stages 2 and 3 share: steps, evaluation, checkpoints; a run that was killed goes on to the same end.

Nothing is drawn from a generator whose state would have to be kept: the samples of a step, their flips and whatever a
model draws follow from the seed and the number of the step.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .._util.errors import RunError
from .._util.images import ImageError
from .._version import __version__
from .checkpoint import read_checkpoint, write_checkpoint
from .config import BETAS, TrainConfig
from .data import Images, OnlinePairs, Sample, Stream, batches, collate, derived_seed, positions, split
from .evaluation import Evaluation, evaluate
from .log import RunLog
from .loss import feature_losses
from .pictures import Pictures
from .stage import Batch, Stage
from .watch import Clock, Signals

Skipped = Callable[[str], None]  # takes the reason, one line, why an image is skipped
CHECKPOINT = "checkpoint.pt"
LOG_EVERY = 10  # steps
NUM_PICTURES = 4
NOT_FINITE = "what was written before is intact. Lower lr, try 'bf16' rather than 'fp16', or check the features"


class RunInterruptedError(RuntimeError):
    """A signal has stopped the run, whose checkpoint is written."""


class Trainer:
    """One run: what to train, its numbers, its folder.

    Args:
        stage: its other models are on the accelerator's device.
        config: the numbers.
        run: a folder that the caller has made and holds.
        accelerator: devices, precision and processes.
        progress: whether to show a bar.
        skipped: called with the reason, one line, for each image that cannot be read.

    Attributes:
        skipped: images that could not be read, and why.

    Raises:
        ValueError: if the batch cannot be divided among the processes, the accelerator accumulates another number of
            batches than the config says, there are too few samples, or the steps go through them more often than
            `config.most_passes`.
        RunError: if the checkpoint is damaged or does not fit.
    """

    def __init__(
        self,
        stage: Stage,
        config: TrainConfig,
        run: Path,
        accelerator: Any,
        progress: bool = False,
        skipped: Skipped | None = None,
    ) -> None:
        config.check_accelerator(accelerator)
        accelerator.step = 0  # it counts batches, and has more of them if a run before has failed within a step
        self.stage, self.config, self.run, self.accelerator, self.progress = stage, config, run, accelerator, progress
        self.step, self.best = 0, Evaluation()
        self.skipped: dict[str, str] = {}
        self._tell_skipped = skipped
        self.num_pairs = len(stage.samples) * stage.num_pairs
        config.check_passes(self.num_pairs)
        parameters = [parameter for parameter in stage.module.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=BETAS, weight_decay=config.weight_decay, fused=True)
        self.model, self.optimizer = accelerator.prepare(stage.module, optimizer)
        self._pictures = Pictures(run, f"{stage.base} | dvt-timm {__version__}")
        self._kept: dict[str, list[int]] | None = None  # what is not trained on
        self._resume()
        self._validation = stage.samples if stage.validation is None else stage.validation
        self.trained, self.held_out = self._split()
        self.stream = Stream(stage.draw, self.trained, config.seed, self._skip)
        self._unseen: list[Batch] = []  # held-out samples, one each, on the CPU
        self._clock = Clock(accelerator.device)

    @property
    def module(self) -> nn.Module:
        """What is trained, without what accelerate wraps it in."""
        return self.accelerator.unwrap_model(self.model)

    def train(self) -> None:
        """Take the steps that are left.

        Raises:
            RunError: if a sample is damaged, no image can be read, or the loss is not finite; the last checkpoint is
                intact.
            OSError: if nothing can be written; the last checkpoint is intact.
            RunInterruptedError: on SIGINT or SIGTERM, once the checkpoint is written.
        """
        with Signals() as signals, closing(_log(self.run, self.step, self.accelerator)) as log, self._bar() as bar:
            coming, told = self._batches(), False
            self._say(f"{self.config.steps:,} steps of {self.config.batch_size}, {self._passes()}")
            while self.step < self.config.steps:
                self._take_step(coming)
                bar.update()
                stop = signals.received and self.accelerator.num_processes == 1
                if stop or self._due(LOG_EVERY, self.config.eval_every, self.config.checkpoint_every):
                    numbers, stop = self._numbers(signals.received)
                    log.write(self.step, "train", numbers)
                    bar.set_postfix(loss=f"{numbers['loss']:.4f}")
                    if not told:
                        self._say_time_left(numbers["samples/s"])
                    told = True
                if self._due(self.config.eval_every):
                    self._evaluate(log)
                if stop or self._due(self.config.eval_every, self.config.checkpoint_every):
                    self._write_checkpoint()
                if stop:
                    raise RunInterruptedError(
                        f"interrupted after step {self.step} of {self.config.steps}; call it again with the same "
                        "arguments to go on"
                    )

    def predicted(self, module: nn.Module) -> list[Tensor]:
        """Give the maps [h, w, C] of the held-out samples by a module on the accelerator's device, on the CPU."""
        with torch.no_grad():
            inputs = (batch.inputs.to(self.accelerator.device) for batch in self.unseen())
            return [module(each)[0].float().cpu() for each in inputs]

    def names(self) -> list[str]:
        """Name the held-out samples."""
        return [str(self._validation.path(i)) for i in self.held_out]

    def unseen(self) -> list[Batch]:
        """Read the held-out samples as batches of one, on the CPU; those that cannot be read are held out no more.

        Raises:
            RunError: if none can be read.
        """
        if not self._unseen:
            found = {i: batch for i in self.held_out if (batch := self._read_held_out(i)) is not None}
            if not found:
                raise RunError(f"none of {len(self.held_out)} held-out images can be read; see what has become of them")
            self.held_out, self._unseen = list(found), list(found.values())
        return self._unseen

    def _split(self) -> tuple[list[int], list[int]]:
        """Give what to train on and what to hold out: as before, if the run is taken up."""
        samples, config = self.stage.samples, self.config
        if self.stage.validation is not None:
            return list(range(len(samples))), list(range(len(self.stage.validation)))
        if self._kept is None:
            of_files = isinstance(samples, OnlinePairs | Images) and self.step == 0  # older runs go on as they began
            file = samples.path if of_files else None
            trained, held_out = split(samples, config.held_out, config.seed, self._is_readable, file)
            copies = set(range(len(samples))).difference(trained, held_out)
            self._kept = {"held_out": held_out, "copies": sorted(copies)}
        return sorted(set(range(len(samples))).difference(*self._kept.values())), self._kept["held_out"]

    @torch.no_grad()
    def _read_held_out(self, i: int) -> Batch | None:
        try:
            sample = self._validation[i]
        except ImageError as error:
            self._skip(i, error)
            return None
        return Batch(*(part.cpu() for part in self._batch(collate([sample]))))

    def _is_readable(self, i: int) -> bool:
        try:
            self.stage.check(i)
        except ImageError as error:
            self._skip(i, error)
            return False
        return True

    def _skip(self, i: int, error: ImageError) -> None:
        """Note that an image cannot be read, and tell it once."""
        name, reason = str(self.stage.samples.path(i)), " ".join(str(error).split())
        if self.skipped.setdefault(name, reason) is reason and self._tell_skipped is not None:
            self._tell_skipped(reason)

    def _passes(self) -> str:
        return f"{self.config.passes(self.num_pairs):,.1f} times through {self.num_pairs:,} pairs"

    def _say_time_left(self, samples_per_second: float) -> None:
        left = (self.config.steps - self.step) * self.config.batch_size
        if left:
            self._say(f"some {timedelta(seconds=round(left / samples_per_second))} to go, evaluations aside")

    def _say(self, text: str) -> None:
        if self.progress:
            tqdm.write(f"{self.run}: {text}", file=sys.stderr)

    def _bar(self) -> Any:
        hidden = None if self.progress else True
        return tqdm(total=self.config.steps, initial=self.step, unit="step", disable=hidden)

    def _batches(self) -> Iterator[Sample]:
        config, accelerator = self.config, self.accelerator
        ranks = (accelerator.process_index, accelerator.num_processes)
        places = positions(self.step, config.steps, config.batch_size, config.accumulation, *ranks)
        return batches(self.stream, places, self._workers(), pin_memory=accelerator.device.type == "cuda")

    def _workers(self) -> int:
        if not self.stage.workers:
            return 0
        if self.config.workers is None:
            return 1 if self.accelerator.device.type == "cpu" else 4
        return self.config.workers

    def _take_step(self, coming: Iterator[Sample]) -> None:
        torch.manual_seed(derived_seed(self.config.seed, self.step, self.accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step)
        self.model.train()
        for _ in range(self.config.accumulation):
            with self._clock.waiting():
                sample = _next(coming)
            batch = self._batch(sample)
            with self.accelerator.accumulate(self.model):
                losses = feature_losses(self.model(batch.inputs), batch.target)
                self.accelerator.backward(losses.total)
                self.optimizer.step()
                self.optimizer.zero_grad()
            self._clock.add(len(batch.inputs), torch.stack(losses).detach())
        self.step += 1

    def _batch(self, sample: Sample) -> Batch:
        with self.accelerator.autocast():
            return self.stage.batch(_moved(sample, self.accelerator.device))

    def _due(self, *every: int) -> bool:
        return self.step == self.config.steps or any(self.step % steps == 0 for steps in every)

    def _numbers(self, stop: bool) -> tuple[dict[str, float], bool]:
        """Give what the log says of the last steps, and whether any process is to stop."""
        seconds, waiting, samples, losses = self._clock.lap()
        shared = torch.cat([losses, losses.new_tensor([stop])])
        mse, cosine, stop_share = self.accelerator.reduce(shared, "mean").tolist()
        if not math.isfinite(mse + cosine):
            raise RunError(f"the loss is not finite at step {self.step} or shortly before; {NOT_FINITE}")
        numbers = {
            "loss": mse + cosine,
            "mse": mse,
            "cosine": cosine,
            "lr": self.config.rate(self.step - 1),
            "samples/s": samples * self.accelerator.num_processes / seconds,
            "waiting": waiting / seconds,
        }
        return numbers, stop_share > 0

    def _evaluate(self, log: Any) -> None:
        """Measure held-out samples, draw some, and keep the weights if they are the best so far."""
        if self.accelerator.is_main_process:
            self.module.eval()
            predicted = self.predicted(self.module)
            if not all(bool(fmap.isfinite().all()) for fmap in predicted):
                raise RunError(
                    f"what is predicted of held-out images is not finite after step {self.step}; {NOT_FINITE}"
                )
            scores = evaluate(predicted, [batch.target[0] for batch in self.unseen()])
            log.write(self.step, "held out", scores)
            self._draw(predicted, scores["loss"])
            if scores["loss"] < self.best.get("loss", math.inf):
                self.best = {"step": self.step, **scores}
                self.stage.save(self.module, self.run)
        self.accelerator.wait_for_everyone()

    def _draw(self, predicted: list[Tensor], loss: float) -> None:
        samples = zip(range(NUM_PICTURES), self.held_out, predicted, self.unseen(), strict=False)
        for place, index, fmap, batch in samples:
            self._pictures.draw(place, self._validation.path(index), batch, fmap, self.step, loss)

    def _write_checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            if not all(bool(parameter.isfinite().all()) for parameter in self.module.parameters()):
                raise RunError(f"weights are not finite after step {self.step}; {NOT_FINITE}")
            scaler = self.accelerator.scaler
            state = {
                "step": self.step,
                "best": self.best,
                "split": self._kept,
                "pictures": self._pictures.state,
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            write_checkpoint(self.run / CHECKPOINT, state)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        state = read_checkpoint(self.run / CHECKPOINT)
        if state is None:
            return
        try:
            self.step, self.best = state["step"], state["best"]
            self._kept = state.get("split")  # up to version 0.1 it was drawn again
            self._pictures.state = state.get("pictures", {})  # up to version 0.1 there were no strips
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            path = self.run / CHECKPOINT
            raise RunError(f"{path} does not fit this run ({error}); remove it to begin anew") from error


class _NoLog:
    """Stands for the log in processes other than the first."""

    def write(self, step: int, group: str, numbers: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def _log(run: Path, step: int, accelerator: Any) -> RunLog | _NoLog:
    return RunLog(run, step) if accelerator.is_main_process else _NoLog()


def _next(coming: Iterator[Sample]) -> Sample:
    try:
        return next(coming)
    except (ValueError, OSError) as error:
        raise RunError(f"cannot read a sample: {error}; mend that and call it again with the same arguments") from error


def _moved(sample: Sample, device: torch.device) -> Sample:
    if isinstance(sample, tuple):
        return tuple(_moved(part, device) for part in sample)
    return sample.to(device, non_blocking=True)
