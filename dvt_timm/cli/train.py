"""`dvt-timm train`: stage 2, a denoiser head."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import stage1, training
from .console import CommandError, Commands, add_large_images, positive, quiet_hub

if TYPE_CHECKING:
    from ..head import DenoiserHead
    from ..offline import FeatureStore
    from ..train import OnlinePairs, TrainConfig

PRESETS = ("released", "paper", "quick")


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "train",
        help="train a denoiser head",
        description="Stage 2: a head learns to predict clean features from raw ones. RUN gets what save_head writes, "
        "for denoiser=RUN and `dvt-timm push RUN user/repo`. After an interruption, run the same again. Exit status 1 "
        "if an image had to be skipped. On several GPUs: accelerate launch -m dvt_timm train ...",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--store", type=Path, metavar="STORE", help="features that `dvt-timm fit` wrote")
    source.add_argument(
        "--online", nargs="+", type=Path, metavar="IMAGES", help="no store: decompose images each time they are needed"
    )
    parser.add_argument(
        "--validation", type=Path, metavar="STORE", help="measure on these pairs, rather than hold some out"
    )
    parser.add_argument("--base", metavar="NAME", help="timm name of the backbone (default: the store's)")
    parser.add_argument(
        "--initial-head", metavar="HEAD", help="go on from its weights: folder, file or hf-hub:user/repo (default: new)"
    )
    parser.add_argument(
        "--num-blocks", type=positive, default=1, metavar="N", help="transformer blocks of a new head (default: 1)"
    )
    add_large_images(parser)
    training.add_options(parser, PRESETS)
    stage1.add_options(parser)
    defaults = {name: parser.get_default(name) for name in (*stage1.OPTIONS, "num_blocks")}
    parser.set_defaults(run=run, check=_check, defaults=defaults)


def run(arguments: argparse.Namespace) -> int:
    """Train a head, on a store or on images."""
    quiet_hub()
    with training.explained():
        return _train_online(arguments) if arguments.online else _train_on_store(arguments)


def _check(arguments: argparse.Namespace) -> None:
    """Raise CommandError where an option is missing or would do nothing."""
    given = [name for name, default in arguments.defaults.items() if getattr(arguments, name) != default]
    if arguments.initial_head and "num_blocks" in given:
        raise CommandError("--num-blocks is of a new head, and --initial-head has its own; leave one of them out")
    views = ["--" + name.replace("_", "-") for name in given if name in stage1.OPTIONS]
    if arguments.store and views:
        raise CommandError(
            f"{', '.join(views)} would not matter: a store has its features; give them to `dvt-timm fit`"
        )
    if arguments.validation and arguments.held_out:
        raise CommandError("--validation takes the place of --held-out; leave one of them out")
    if arguments.online and arguments.base is None:
        raise CommandError("--online needs --base, the timm name of the backbone")
    stage1.check(arguments)


def _train_on_store(arguments: argparse.Namespace) -> int:
    from ..offline import open_store
    from ..train.config import TRAIN_PRESETS

    store = open_store(arguments.store)
    num_pairs = len(store) * store.num_pairs
    config, accelerator = training.begin(arguments, TRAIN_PRESETS[arguments.preset], num_pairs)
    return _train(store, arguments.base or store.settings["model"], config, accelerator, arguments)


def _train_online(arguments: argparse.Namespace) -> int:
    from ..train import OnlinePairs
    from ..train.config import TRAIN_PRESETS
    from ..train.record import begun_with
    from .inputs import images_of
    from .models import load_model

    paths, missing = images_of(arguments.online, arguments.out)
    paths = begun_with(arguments.out, paths)
    num_pairs = len(paths) * (1 + arguments.view_pairs)
    config, accelerator = training.begin(arguments, TRAIN_PRESETS[arguments.preset], num_pairs)
    model = load_model(arguments.base, None, str(accelerator.device))
    pairs = OnlinePairs(paths, stage1.fitter_of(model, arguments, progress=False), arguments.calibrate)
    return _train(pairs, arguments.base, config, accelerator, arguments, missing)


def _train(
    samples: FeatureStore | OnlinePairs,
    base: str,
    config: TrainConfig,
    accelerator: Any,
    arguments: argparse.Namespace,
    missing: int = 0,
) -> int:
    from ..offline import open_store
    from ..train import train_denoiser

    report = train_denoiser(
        samples,
        base,
        arguments.out,
        config,
        accelerator=accelerator,
        progress=True,
        skipped=training.report_skipped,
        validation=None if arguments.validation is None else open_store(arguments.validation),
        initial=_initial_head(arguments.initial_head),
        num_blocks=arguments.num_blocks,
    )
    use = f"timm.create_model({base!r}, pretrained=True, denoiser={str(arguments.out)!r}{_weights_of(arguments.out)})"
    return training.say_result(arguments.out, report, use, missing)


def _weights_of(run: Path) -> str:
    """Say in an argument of `create_model` that a head needs other weights than its base's own, if it does."""
    from .._util.files import CONFIG_NAME, read_json
    from ..checkpoints.heads import base_sha256

    config = read_json(run / CONFIG_NAME)
    return "" if config["base_sha256"] == base_sha256(config["base"]) else ", pretrained_cfg_overlay={'file': WEIGHTS}"


def _initial_head(source: str | None) -> DenoiserHead | None:
    from ..checkpoints.heads import load_head
    from ..head import DenoiserHead

    if source is None:
        return None
    try:
        head = load_head(source)
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot load --initial-head {source}: {error}") from error
    if not isinstance(head, DenoiserHead):
        raise CommandError(f"--initial-head {source} is a {type(head).__name__}, which is not trained; name another")
    return head
