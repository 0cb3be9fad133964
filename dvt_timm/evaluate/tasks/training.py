"""One probe for each row, all trained on the same batches in one loop; a run that was stopped goes on to the same end.

Nothing is drawn from a generator whose state would have to be kept: the samples of a step and what is done to them
follow from the seed and the number of the step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from ..._util.errors import RunError
from ..._util.files import replacing
from ..._util.threads import made_ahead
from ..rows import Features, Rows
from ..segmentation_probe import pad_to_patches

CHECKPOINT = "probe.pt"
EVERY = 100  # steps between checkpoints
TRIES = 10  # samples in a row that cannot be read end a run

Probe = TypeVar("Probe", bound=nn.Module)
Loss = Callable[[Any, Features, Tensor, int], Tensor]  # head, features, targets [B, ...], step -> loss
Sample = Callable[[int, Generator], tuple[Tensor, Tensor]]  # index, draws -> image [3, H, W] and target


class Config(Protocol):
    """The numbers of a probe's training."""

    @property
    def steps(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def betas(self) -> tuple[float, float]: ...

    @property
    def weight_decay(self) -> float: ...

    def rate(self, step: int) -> float: ...


def alike(rows: Rows, seed: int, make: Callable[[int], Probe]) -> dict[str, Probe]:
    """Make a probe for each row of the row's width; those of a width begin with the same weights."""
    probes = {}
    for name in rows.names:
        torch.manual_seed(seed)
        probes[name] = make(rows.width(name))
    return probes


def train_probes(
    rows: Rows,
    heads: Mapping[str, nn.Module],
    loss: Loss,
    sample: Sample,
    names: Sequence[str],
    config: Config,
    *,
    task: str,
    folder: Path | None = None,
    seed: int = 0,
    clip_norm: float | None = None,
    skipped: dict[str, str] | None = None,
    progress: bool = False,
) -> None:
    """Train a probe for each row, on the same batches.

    Args:
        rows: the model, and what is to be compared with it; they are not trained.
        heads: name of a row -> its probe, trained in place.
        loss: of a probe.
        sample: reads and augments a sample; a ValueError puts the next one in its place.
        names: of the samples.
        config: steps, batch, learning rates.
        task: what is trained, with everything that makes its loss.
        folder: where a checkpoint is kept; a run of the same settings goes on from it.
        seed: decides samples and what is done to them.
        clip_norm: largest norm of a probe's gradient.
        skipped: takes the reasons why samples could not be read.
        progress: whether to show a bar.

    Raises:
        RunError: if the checkpoint is of other settings or damaged, the loss is not finite, or no sample can be read.
        OSError: if it cannot be written.
    """
    device = next(rows.model.parameters()).device
    for head in heads.values():
        head.to(device).train()
    parameters = [parameter for head in heads.values() for parameter in head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=config.betas, weight_decay=config.weight_decay)
    digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
    settings = json.dumps(
        {**rows.settings, "config": repr(config), "task": task, "samples": digest, "seed": seed}, sort_keys=True
    )
    checkpoint = _Checkpoint(None if folder is None else folder / CHECKPOINT, settings)
    first = checkpoint.read(heads, optimizer)
    stream = _Stream(sample, len(names), seed, {} if skipped is None else skipped)
    bar = tqdm(
        range(first, config.steps), "training", initial=first, total=config.steps, disable=None if progress else True
    )
    for step, (pixels, target) in zip(bar, stream.batches(first, config.steps, config.batch_size), strict=True):
        padded, _ = pad_to_patches(pixels, rows.model.patch_embed.patch_size)
        features = rows.features(padded)
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        optimizer.zero_grad(set_to_none=True)
        losses = torch.stack([loss(head, features[name], target.to(device), step) for name, head in heads.items()])
        if not bool(losses.isfinite().all()):
            raise RunError(f"the loss of step {step} is not finite; check the model's features, or lower the rate")
        losses.sum().backward()
        if clip_norm is not None:
            for head in heads.values():
                nn.utils.clip_grad_norm_(head.parameters(), clip_norm)
        optimizer.step()
        bar.set_postfix(loss=f"{float(losses.detach().mean()):.3f}")
        if (step + 1) % EVERY == 0 or step + 1 == config.steps:
            checkpoint.write(step + 1, heads, optimizer)
    for head in heads.values():
        head.eval()


class _Checkpoint:
    """The state of a run on disk, whole or not at all."""

    def __init__(self, path: Path | None, settings: str) -> None:
        self.path, self.settings = path, settings

    def write(self, step: int, heads: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": self.settings,
            "step": step,
            "heads": {name: head.state_dict() for name, head in heads.items()},
            "optimizer": optimizer.state_dict(),
        }
        with replacing(self.path) as path:
            torch.save(state, path)

    def read(self, heads: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
        """Load the state, if there is one; give the number of steps that were taken."""
        if self.path is None or not self.path.exists():
            return 0
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["settings"] != self.settings:
                raise RunError(f"{self.path} is of a run with other settings; choose another folder, or delete it")
            for name, head in heads.items():
                head.load_state_dict(state["heads"][name])
            optimizer.load_state_dict(state["optimizer"])
            return int(state["step"])
        except RunError:
            raise
        except Exception as error:  # whatever a damaged file makes of torch's reader
            raise RunError(f"{self.path} is damaged ({type(error).__name__}); delete it to begin anew") from error


class _Stream:
    """Goes through the samples again and again, each time in another order."""

    def __init__(self, sample: Sample, count: int, seed: int, skipped: dict[str, str]) -> None:
        if count < 1:
            raise RunError("there is nothing to train on; give a data set with images that train")
        self.sample, self.count, self.seed, self.skipped = sample, count, seed, skipped
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def batches(self, first: int, last: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Read the samples of steps; threads read those of the next two while one is in use."""
        samples = made_ahead(self._read, range(first * size, last * size), threads=None, most=2 * size)
        while batch := list(islice(samples, size)):
            pixels, targets = (torch.stack(parts) for parts in zip(*batch, strict=True))
            yield pixels, targets

    def _read(self, position: int) -> tuple[Tensor, Tensor]:
        for turn in range(TRIES):
            index = self._index(position + turn)
            try:
                return self.sample(index, torch.Generator().manual_seed(self.seed * 1_000_003 + position))
            except ValueError as error:
                self.skipped[f"sample {index}"] = str(error)
        raise RunError(f"{TRIES} samples in a row cannot be read, the last because: {self.skipped[f'sample {index}']}")

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        return self._order(epoch)[place]

    def _shuffled(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.count, generator=generator).tolist()
