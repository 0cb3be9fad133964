"""Types of arguments, lines and tables of the commands."""

import argparse
from typing import Any

import pytest

from dvt_timm.cli.console import add_model_arguments, cell, finite, one_line, positive, report, table, whole


def test_whole_numbers_from_1_on() -> None:
    assert positive("12") == 12
    for text in ("0", "-1", "1.5", "", "one", "²"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be a positive whole number, got "):
            positive(text)


@pytest.mark.parametrize("text", ["2147483648", "9" * 5000])
def test_whole_numbers_that_libraries_take(text: str) -> None:
    for read in (positive, whole):
        with pytest.raises(
            argparse.ArgumentTypeError, match=r"must be (at most 2,147,483,647|a whole number), got 2?9?"
        ):
            read(text)
    assert (whole("-3"), whole("2147483647")) == (-3, 2147483647)
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number, got 'x'"):
        whole("x")


def test_numbers_that_are_some() -> None:
    assert finite("-1e3") == -1000
    for text in ("nan", "inf", "-inf", "1e999", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="must be a number, got "):
            finite(text)


def test_text_goes_left_and_numbers_go_right() -> None:
    columns = {"name": ("name", ""), "size": ("MB", ".1f")}
    rows = [{"name": "a", "size": 12.34}, {"name": "longer", "size": None}]
    assert table(columns, rows).splitlines() == ["name      MB", "a       12.3", "longer     -"]
    assert table(columns, []) == "name  MB"


def test_cells() -> None:
    assert [cell(1.25, ".1f"), cell("text"), cell(None, ".1f"), cell(0)] == ["1.2", "text", "-", "0"]


def test_a_report_is_one_line_on_standard_error(capsys: Any) -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    report("a\nb")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "dvt-timm: a b\n")


def test_the_old_word_for_weights_is_not_shown() -> None:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    assert "--weights SOURCE" in parser.format_help()
    assert "--checkpoint" not in parser.format_help()
    assert parser.parse_args(["--checkpoint", "x"]).weights == parser.parse_args(["--weights", "x"]).weights == "x"
