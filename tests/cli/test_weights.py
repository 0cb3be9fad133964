"""`dvt-timm weights`: what it prints and returns; tests/publish/test_pins.py has what it does."""

from typing import Any

import pytest
from command import error_of
from hub_server import Hub

from dvt_timm.cli import main as cli
from dvt_timm.publish import pins

ROW = {"file": "embedded:head", "size": 7, "sha256": "ab", "revision": None}


@pytest.mark.parametrize(("states", "status"), [(["ok", "ok"], 0), (["ok", "not pinned"], 1)])
def test_check(states: list[str], status: int, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def check(download: bool) -> list[dict[str, Any]]:
        asked.append(download)
        return [{**ROW, "state": state} for state in states]

    monkeypatch.setattr(pins, "check", check)
    assert cli.main(["weights", "check", *(["--download"] if status else [])]) == status
    assert asked == [bool(status)]
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["file", "bytes", "SHA-256", "revision", "state"]
    assert lines == [f"embedded:head      7  ab       -         {state}" for state in states]


def test_pin(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "pin", lambda revision: [{**ROW, "revision": revision, "state": "pinned"}])
    assert cli.main(["weights", "pin", "--revision", "v1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["embedded:head", "7", "ab", "v1", "pinned"]


def test_a_hub_that_has_nothing_is_one_line(hub: Hub, capsys: Any) -> None:
    hub.absent.add("jjiaweiyang/DVT")
    assert "jjiaweiyang/DVT" in error_of(capsys, "weights", "check")


def test_an_action_is_needed() -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["weights"])
    assert exit.value.code == 2
