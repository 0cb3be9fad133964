"""A team of one, and who speaks; teams of two are in the tests of the commands."""

from __future__ import annotations

import time

import pytest
import torch

from dvt_timm._util.team import GRACE, Alone, Team, fails_first


def test_one_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    team = Team()
    assert (team.rank, team.size, team.device) == (0, 1, None)
    assert team.part(range(3)) == range(3)
    assert list(team.gather({2: "b", 1: "a"}).items()) == [(1, "a"), (2, "b")]
    tensor = torch.rand(2, 3)
    assert team.concatenate(tensor) is tensor
    team.agree([tensor])
    team.wait()


def test_parts_make_the_whole() -> None:
    teams = [Alone() for _ in range(3)]
    for rank, team in enumerate(teams):
        team.rank, team.size = rank, 3
    assert sorted(item for team in teams for item in team.part(range(10))) == list(range(10))


def test_alone_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert (Alone().rank, Alone().size) == (0, 1)


def test_before_they_have_met_the_first_one_speaks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert fails_first()
    assert waited == [0, GRACE]
