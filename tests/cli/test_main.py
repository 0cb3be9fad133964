"""The command `dvt-timm`: help, version, errors, exit statuses; and what needs neither torch nor timm."""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from email.message import EmailMessage
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

import dvt_timm
from dvt_timm.cli import features
from dvt_timm.cli import main as cli

COMMANDS = ("features", "explore", "fit", "train", "distill", "list", "convert", "push", "weights")
STARTED = (
    "import atexit, sys, dvt_timm_command\n"
    "heavy = {'torch', 'timm', 'numpy', 'PIL', 'huggingface_hub', 'dvt_timm.viz', 'dvt_timm.registry'}\n"
    "atexit.register(lambda: print('heavy:', *sorted(heavy & sys.modules.keys())))\n"
    "sys.exit(dvt_timm_command.main())\n"
)


def started(*arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors of the command in a process of its own, which ends with what heavy it imported."""
    done = subprocess.run([sys.executable, "-c", STARTED, *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *([command, "--help"] for command in COMMANDS),
        ["weights", "check", "--help"],
        ["list"],
        ["list", "*dinov2*", "--json"],
        ["list", "--markdown"],
    ],
    ids=" ".join,
)
def test_help_and_lists_import_nothing_heavy(arguments: list[str]) -> None:
    status, out, _ = started(*arguments)
    assert status == 0
    assert out.splitlines()[-1] == "heavy:"
    assert len(out.splitlines()) > 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sing"],
        ["features"],
        ["features", "a.png", "--size", "0"],
        ["fit", "a.png", "--field-steps", "9"],
        ["train", "--out", "run"],
        ["train", "--out", "run", "--online", "a.png"],
        ["convert", ".", "--base", "vit_base_patch16_224.dino", "--out", "run"],
        ["list", "no*"],
    ],
    ids=" ".join,
)
def test_usage_errors_import_nothing_heavy(arguments: list[str]) -> None:
    status, out, err = started(*arguments)
    assert status == 2
    assert out == "heavy:\n"
    assert err.splitlines()[-1].startswith("dvt-timm")
    assert "error: " in err.splitlines()[-1]


def test_a_command_that_needs_timm_has_the_names(tmp_path: Path) -> None:
    status, out, err = started("features", str(ROOT / "examples/data/cat.jpg"), "--size", "28", "--out", str(tmp_path))
    assert status == 0, err
    assert "timm torch" in out


def test_help_names_the_commands(capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["--help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command} " in out


def test_version(capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"dvt-timm {dvt_timm.__version__}\n"


def test_a_command_is_needed(capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main([])
    assert exit.value.code == 2


class NoSuchShapeError(ValueError):
    """An error of the library's own."""


@pytest.mark.parametrize(
    "error", [NoSuchShapeError, FileNotFoundError, RuntimeError, ModuleNotFoundError, MemoryError, OverflowError]
)
def test_what_the_library_refuses_is_one_line(error: type[Exception], capsys: Any, monkeypatch: Any) -> None:
    def refuse(arguments: argparse.Namespace) -> int:
        raise error("this is\nwrong")

    monkeypatch.setattr(features, "run", refuse)
    assert cli.main(["features", "a.png"]) == 2
    assert capsys.readouterr().err == "dvt-timm: error: this is wrong\n"


@pytest.mark.parametrize("urls", [None, ["Repository, https://example.org/dvt-timm"]])
def test_what_nobody_expects_is_a_traceback_and_where_to_send_it(urls: Any, capsys: Any, monkeypatch: Any) -> None:
    known = EmailMessage()
    for url in urls or ():
        known["Project-URL"] = url
    monkeypatch.setattr(cli, "metadata", lambda name: known)
    monkeypatch.setattr(features, "run", lambda arguments: [][0])
    assert cli.main(["features", "a.png"]) == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2] == "IndexError: list index out of range"
    assert lines[-1].startswith(
        f"dvt-timm: this is a bug of dvt-timm {dvt_timm.__version__}; report the lines above to "
    )
    assert lines[-1].endswith(" https://example.org/dvt-timm" if urls else " its maintainers")


def test_a_bug_where_nothing_is_installed(capsys: Any, monkeypatch: Any) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(cli, "metadata", missing)
    monkeypatch.setattr(features, "run", lambda arguments: [][0])
    assert cli.main(["features", "a.png"]) == 70
    assert capsys.readouterr().err.endswith(" report the lines above to its maintainers\n")


def test_warnings_are_one_line_each(capsys: Any, monkeypatch: Any) -> None:
    def warn(arguments: argparse.Namespace) -> int:
        warnings.warn("mind\nthis", stacklevel=1)
        return 0

    monkeypatch.setattr(features, "run", warn)
    assert cli.main(["features", "a.png"]) == 0
    assert capsys.readouterr().err == "dvt-timm: warning: mind this\n"


def test_the_old_spelling_of_distill(capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["distil", "--help"])
    assert exit.value.code == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: dvt-timm distill ")
    assert captured.err == "dvt-timm: note: `distil` is spelled `distill` now\n"
