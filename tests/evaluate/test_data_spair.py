"""SPair-71k: what a pair is read as, and damaged annotations, which are told as such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluating import spair
from helpers import FAMILIES, VIT, create

from dvt_timm.evaluate import Rows
from dvt_timm.evaluate.data.spair import SpairPairs
from dvt_timm.evaluate.tasks.correspondence import correspondence


def damage(folder: Path, **changed: Any) -> Path:
    """Change fields of the first pair."""
    path = folder / "PairAnnotation/test/0_dog.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return path


def test_a_pair(tmp_path: Path) -> None:
    spair(tmp_path)
    pair = SpairPairs(tmp_path)[0]
    assert pair.source_points.tolist() == [[10, 10], [60, 50]]
    assert pair.target_points.tolist() == [[12, 10], [60, 40]]
    assert (pair.side, pair.source.name, pair.target.name) == (70, "0.jpg", "1.jpg")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"src_kps": [[1, 2, 3]]}, r"src_kps must be \[x, y\] of each point, got shape \[1, 3\]"),
        ({"src_kps": [1, 2, 3, 4]}, r"got shape \[4\]"),
        ({"trg_kps": [[1, 2], [3]]}, "length"),
        ({"trg_kps": []}, r"trg_kps must be .* got shape \[0\]"),
        ({"trg_kps": [[1, 2]]}, "2 and 1 points"),
        ({"src_kps": [[10, float("nan")], [1, 2]]}, "src_kps must be finite"),
        ({"trg_kps": [[10, float("inf")], [1, 2]]}, "trg_kps must be finite"),
        ({"trg_kps": [[10**400, 1], [1, 2]]}, "too large"),
        ({"trg_kps": None}, "NoneType"),
        ({"trg_bndbox": [0, 0, float("nan"), 9]}, "trg_bndbox must be"),
        ({"trg_bndbox": [0, float("nan"), 9, 9]}, "trg_bndbox must be"),
        ({"trg_bndbox": [5, 5, 5, 5]}, "trg_bndbox must be"),
    ],
)
def test_a_damaged_annotation_is_told(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    spair(tmp_path)
    damage(tmp_path, **changed)
    with pytest.raises(ValueError, match=rf"0_dog.json is no pair of SPair-71k: .*{message}.*; take another copy"):
        SpairPairs(tmp_path)[0]


def test_a_damaged_annotation_does_not_end_the_run(tmp_path: Path) -> None:
    spair(tmp_path)
    damage(tmp_path, src_kps=[[1, 2, 3]])
    path = tmp_path / "PairAnnotation/test/1_dog.json"
    path.write_text(path.read_text().replace("[10, 10]", "[NaN, 10]"))
    found = correspondence(Rows(create(FAMILIES[VIT], dynamic_img_size=True, img_size=70)), SpairPairs(tmp_path))
    assert found.count == 2
    assert found.skipped.keys() == {"pair 0", "pair 1"}
