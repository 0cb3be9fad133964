"""One probe for each row, all trained on the same batches in one loop; a run that was stopped goes on to the same end.

Of several processes each reads its part of a batch and lets the models see it, which is what takes time, and all train
the probes on the whole: no loss or mean over a batch needs to know of processes.

Nothing is drawn from a generator whose state would have to be kept: the samples of a step and what is done to them
follow from the seed and the number of the step.
"""

from __future__ import annotations

import hashlib
import json
import math
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
from ..._util.team import Team
from ..._util.threads import made_ahead
from ..rows import PLAIN, PROJECTION, Features, Rows
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
    def weight_decay(self) -> float: ...

    def rate(self, step: int) -> float: ...

    def betas(self, step: int) -> tuple[float, float]: ...


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
        ValueError: if the processes cannot share a batch evenly.
        OSError: if it cannot be written.
    """
    if config.batch_size % rows.team.size:
        raise ValueError(
            f"batch_size {config.batch_size} must be a multiple of {rows.team.size}, the processes that share it; "
            "choose another one, or start fewer"
        )
    device = next(rows.model.parameters()).device
    for head in heads.values():
        head.to(device).train()
    parameters = [parameter for head in heads.values() for parameter in head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=config.weight_decay)
    digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
    settings = {**_settings(rows), "config": repr(config), "task": task, "samples": digest, "seed": seed}
    checkpoint = _Checkpoint(None if folder is None else folder / CHECKPOINT, json.dumps(settings, sort_keys=True))
    first = checkpoint.read(heads, optimizer)
    stream = _Stream(sample, len(names), seed, {} if skipped is None else skipped)
    bar = tqdm(
        range(first, config.steps), "training", initial=first, total=config.steps, disable=None if progress else True
    )
    batches = stream.batches(first, config.steps, config.batch_size, rows.team)
    for step, (pixels, part) in zip(bar, batches, strict=True):
        features, target = _joined(rows, pixels, part)
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = config.rate(step), config.betas(step)
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for name, head in heads.items():
            losses.append(loss(head, features[name], target, step))
            losses[-1].backward()  # now, so that what one probe's loss needs is held at a time
        mean = float(torch.stack(losses).detach().mean())
        if not math.isfinite(mean):
            raise RunError(f"the loss of step {step} is not finite; check the model's features, or lower the rate")
        if clip_norm is not None:
            for head in heads.values():
                nn.utils.clip_grad_norm_(head.parameters(), clip_norm)
        optimizer.step()
        bar.set_postfix(loss=f"{mean:.3f}")
        if rows.team.rank == 0 and ((step + 1) % EVERY == 0 or step + 1 == config.steps):
            checkpoint.write(step + 1, heads, optimizer)
    for head in heads.values():
        rows.team.agree(head.state_dict().values())  # GPUs round as they like
        head.eval()


def _settings(rows: Rows) -> dict[str, Any]:
    """Give the rows' settings but for the projection's numbers, which more processes, or fewer, round otherwise."""
    return {key: value for key, value in rows.settings.items() if key != f"SHA-256 of {PROJECTION}"}


def _joined(rows: Rows, pixels: Tensor, target: Tensor) -> tuple[dict[str, Features], Tensor]:
    """Give the features of a step's samples and their targets [B, ...], where the model is, of all processes' parts."""
    team = rows.team
    padded, _ = pad_to_patches(pixels, rows.model.patch_embed.patch_size)
    features = {
        name: Features(team.concatenate(of.map), None if of.class_token is None else team.concatenate(of.class_token))
        for name, of in rows.features(padded).items()
    }
    return features, team.concatenate(target.to(features[PLAIN].map.device))


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

    def batches(self, first: int, last: int, size: int, team: Team) -> Iterator[tuple[Tensor, Tensor]]:
        """Read this process's samples of steps; threads read those of the next two while one is in use."""
        part = size // team.size
        mine = (step * size + team.rank * part + i for step in range(first, last) for i in range(part))
        samples = made_ahead(self._read, mine, threads=None, most=2 * part)
        while batch := list(islice(samples, part)):
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
