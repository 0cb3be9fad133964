"""`dvt-timm push`: a head or a model to the Hugging Face Hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from .console import CommandError, Commands


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "push",
        help="push a head or a model to the Hugging Face Hub",
        description="Push what save_head or save_model wrote, with a model card, in one commit. Log in with `hf auth "
        "login` or set HF_TOKEN. After a failure, run the same again.",
    )
    parser.add_argument("source", metavar="FOLDER", help="a head's folder or .safetensors file, or a model's folder")
    parser.add_argument("repo", metavar="USER/REPO", help="made if it does not exist; a README.md that it has is kept")
    parser.add_argument("--base", metavar="NAME", help="timm name of a head's backbone (default: as the folder says)")
    parser.add_argument(
        "--merged", action="store_true", help="push a head and its base as one model (a model's folder always is)"
    )
    parser.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE",
        help='JSON, {"dataset": {"metric": value}} (default: metrics.json of the folder)',
    )
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME",
        help="a dataset that it was trained on; may be given again",
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--revision", metavar="BRANCH", help="branch to push to, made if it does not exist (default: main)"
    )
    parser.add_argument("--create-pr", action="store_true", help="open a pull request rather than commit")
    parser.add_argument(
        "--message", metavar="TEXT", help="message of the commit (default: one that names what is pushed)"
    )
    parser.add_argument(
        "--yes", action="store_true", help="push what its own verdict.json calls worse than raw features"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Push in one commit, and print its address."""
    from ..head import Head
    from ..publish.push import load_folder, push_to_hub

    metrics = _metrics(arguments.source, arguments.metrics)
    verdict = _verdict(arguments.source, arguments.yes)
    model_or_head, base = load_folder(arguments.source, arguments.base, merged=arguments.merged)
    try:
        commit = push_to_hub(
            model_or_head,
            arguments.repo,
            base=base,
            metrics=metrics,
            datasets=arguments.dataset,
            verdict=verdict,
            merged=arguments.merged or not isinstance(model_or_head, Head),
            private=arguments.private or None,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
            commit_message=arguments.message,
        )
    except TypeError as error:  # no model that can be saved
        raise CommandError(str(error)) from error
    if arguments.create_pr and commit.pr_url is None:
        print("dvt-timm: no pull request, the repository holds the same already", file=sys.stderr)
    print(commit.pr_url or commit.commit_url)
    return 0


def _metrics(source: str, given: Path | None) -> dict[str, Any] | None:
    """Read the metrics that are given, or those that a run of training left beside its head."""
    from .._util.files import METRICS, read_json

    own = Path(source, METRICS)
    path = given or (own if own.is_file() else None)
    if path is not None and not path.is_file():
        raise CommandError(f"--metrics {path} not found; give a JSON file")
    return None if path is None else read_json(path)


def _verdict(source: str, yes: bool) -> list[str]:
    """Read what a run of training found of its own head; raise CommandError if that is worse than raw features.

    The last weights of a run are judged by its best ones, and nothing is said of them.
    """
    from .._util.files import LAST, VERDICT, read_json

    is_last = Path(source).name == LAST
    run = Path(source).parent if is_last or Path(source).is_file() else Path(source)
    path = run / VERDICT
    if not path.is_file():
        return []
    found = read_json(path)
    sentences = [str(sentence) for sentence in found.get("sentences", [])]
    if found.get("worse") and not yes:
        raise CommandError(f"worse than raw features, says {path}: {sentences[0]} Train it further, or pass --yes")
    return [] if is_last else sentences
