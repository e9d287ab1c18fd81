"""Every published cost of CAMixerSR beside ours, within the error that its convention leaves."""

import pytest

from harness.reporting import compare_with_paper

ROWS = compare_with_paper()


def test_all_published_entries_are_compared() -> None:
    counts = dict.fromkeys(("supplementary, tables 1 and 3", "supplementary, table 2"), 0)
    for row in ROWS:
        if row["source"] in counts and row["quantity"] != "params":
            counts[row["source"]] += 1
    assert counts == {"supplementary, tables 1 and 3": 6, "supplementary, table 2": 12}


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row['network']}-x{row['scale']}-{row['gamma']}-{row['quantity']}"
)
def test_ours_is_within_the_conventions_error(row: dict[str, object]) -> None:
    difference = row["difference_percent"]
    assert isinstance(difference, float)
    if row["quantity"] == "params":
        assert abs(difference) < 0.15  # published in thousands
    elif row["network"] == "SwinIR-light":
        assert abs(difference) < 2  # 62.71 G canonical, 61.7 G published under an unstated convention
    elif row["quantity"] == "flops":
        assert abs(difference) < 1
    else:
        assert abs(difference) < (0.5 if row["gamma"] == 1 else 2)
