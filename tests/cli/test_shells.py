"""What shells do to the command: pipes that close, full disks, closed streams, other locales, signals, notebooks."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from command import saved, written
from helpers import ROOT
from tqdm import tqdm

from dvt_timm.cli import features
from dvt_timm.cli import list as list_command
from dvt_timm.cli import main as cli
from dvt_timm.cli.console import SteadyStream, report

START = "import sys, dvt_timm_command\nsys.exit(dvt_timm_command.main())\n"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def shell(tmp_path: Path) -> Any:
    """A line of bash with `dvt` for the command: its status, output and errors."""
    (tmp_path / "start.py").write_text(START)
    dvt = f"dvt() {{ '{sys.executable}' '{tmp_path}/start.py' \"$@\"; }}; "
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

    def run(line: str, **env: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["bash", "-c", dvt + line],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths, **env},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_closes(shell: Any, unbuffered: str) -> None:
    status, out, err = shell("set -o pipefail; dvt list --json | head -n 1", PYTHONUNBUFFERED=unbuffered)
    assert (status, out, err) == (0, "[\n", "")


@pytest.mark.parametrize("line", ["dvt list > /dev/full", "dvt --help > /dev/full", "dvt list --json > /dev/full"])
def test_a_full_disk(shell: Any, line: str) -> None:
    status, _, err = shell(line)
    assert status == 2
    assert err == "dvt-timm: error: cannot write to standard output: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("dvt list >&-", 0),
        ("dvt list '*demo' 2>&-", 0),
        ("dvt list >&- 2>&- <&-", 0),
        ("dvt list nothing 2>&-", 2),
        ("dvt list nothing 2> /dev/full", 2),
        ("dvt 2>&-", 2),
        ("dvt --version >&-", 0),
    ],
)
def test_closed_streams(shell: Any, line: str, status: int) -> None:
    ended, out, err = shell(line)
    assert ended == status
    assert err == ""
    assert ("dvt_demo" in out) == ("2>&-" in line and ">&- " not in line and "demo" in line)


def test_a_closed_stream_gives_its_number_to_no_file(monkeypatch: Any, tmp_path: Path) -> None:
    before = os.dup(2)
    os.close(2)
    try:
        monkeypatch.setattr(sys, "stderr", None)
        monkeypatch.setattr(features, "run", lambda arguments: os.open(tmp_path / "a", os.O_CREAT))
        assert cli.main(["features", "a.png"]) > 2
    finally:
        os.dup2(before, 2)
        os.close(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["dvt features a.png b.png | true", "dvt features a.png b.png >&- 2>&-", "dvt features . > /dev/full"]
)
def test_what_is_printed_never_stops_the_work(shell: Any, tmp_path: Path, line: str) -> None:
    for name in ("a.png", "b.png"):
        saved(tmp_path / name)
    status, _, err = shell(f"set -o pipefail; {line}".replace("features", "features --size 28 --out out"))
    assert status == (2 if "full" in line else 0)
    assert "Traceback" not in err
    assert written(tmp_path / "out") == ["a.safetensors", "b.safetensors"]


@pytest.mark.slow
def test_a_locale_that_is_not_utf_8(shell: Any, tmp_path: Path) -> None:
    saved(tmp_path / "\u00e4.png")
    (tmp_path / "list.txt").write_text("\u00e4.png\n", encoding="utf-8")
    status, out, err = shell("dvt features \u00e4.png --size 28 --out out --weights $PWD/no\u00e4", **ASCII)
    assert (status, err.count("\n"), "Traceback" in err) == (2, 1, False)
    status, out, err = shell("dvt features \u00e4.png --size 28 --out out", **ASCII)
    assert (status, err) == (0, "")
    assert out == "out/\\udcc3\\udca4.safetensors\n"
    assert written(tmp_path / "out") == ["\u00e4.safetensors"]
    status, _, err = shell("dvt fit list.txt --views 2 --size 28 --panel --out store", **ASCII)
    assert (status, err) == (0, "")
    assert (tmp_path / "store/panels/\u00e4.png").is_file()


def test_no_bars_in_a_log(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    for name in ("a.png", "b.png"):
        saved(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dvt_timm.cli.results.Files.is_done", lambda *_: True)
    assert cli.main(["features", "a.png", "b.png", "--size", "28"]) == 0
    assert capsys.readouterr().err == "dvt-timm: 2 of 2 images were done before and are left as they are\n"


@pytest.mark.parametrize("stream", [None, io.StringIO])
def test_streams_of_notebooks_and_of_programs_without_any(stream: Any, monkeypatch: Any) -> None:
    out, err = (None, None) if stream is None else (stream(), stream())
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(["list", "*demo"]) == 0
    assert cli.main(["list", "nothing"]) == 2
    assert (sys.stdout, sys.stderr) == (out, err)
    if out is not None:
        assert "dvt_demo" in out.getvalue()
        assert err.getvalue().startswith("dvt-timm: error: no name matches 'nothing'")


def test_text_that_a_stream_cannot_hold(monkeypatch: Any) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    monkeypatch.setattr(list_command, "summary", lambda rows: "\u00e4 \udcff")
    assert cli.main(["list"]) == 0
    assert raw.getvalue() == b"\\xe4 \\udcff\n"


def test_a_steady_stream_is_what_it_wraps() -> None:
    whole = SteadyStream(io.StringIO())
    assert (whole.isatty(), whole.encoding, whole.write("ab")) == (False, "utf-8", 2)
    with pytest.raises(OSError, match="fileno"):
        SteadyStream(None).fileno()
    closed = io.StringIO()
    closed.close()
    with contextlib.redirect_stderr(SteadyStream(closed)):
        report("nobody reads this")
        with tqdm(total=2, disable=None) as bar:
            bar.update()
        warnings.showwarning("nor this", UserWarning, "file", 1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(number: int, status: int, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    from dvt_timm._util.files import replacing

    def run(arguments: Any) -> int:
        with replacing(tmp_path / "a") as scratch:
            scratch.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(10)
        return 0

    monkeypatch.setattr(features, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it
    try:
        assert cli.main(["features", "a.png"]) == status
    finally:
        signal.signal(signal.SIGINT, interrupt)
    assert capsys.readouterr().err == "dvt-timm: interrupted; run the same again\n"
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == []
