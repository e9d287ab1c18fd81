import pytest

from harness.core.conditions import Conditions, parse_conditions, parse_size
from harness.core.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected", "canonical"),
    [
        ("cpu", Conditions("cpu:1"), "cpu:1"),
        ("cuda", Conditions("cuda:0"), "cuda:0"),
        ("mps/fp32/eager", Conditions("mps"), "mps"),
        ("cpu:2/bf16", Conditions("cpu:2", precision="bf16"), "cpu:2/bf16"),
        (
            "cuda:1/180x320/fp16/compile",
            Conditions("cuda:1", "compile", "fp16", (180, 320)),
            "cuda:1/compile/fp16/180x320",
        ),
    ],
)
def test_conditions_are_read_in_any_order_and_written_in_one(text: str, expected: Conditions, canonical: str) -> None:
    assert parse_conditions(text) == expected
    assert expected.text == canonical
    assert parse_conditions(canonical) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "unknown device 'gpu'; expected cpu:THREADS, cuda:INDEX or mps"),
        ("cpu:0", "unknown device 'cpu:0'"),
        ("cpu:1/fast", "unknown condition 'fast'; expected a runtime"),
        ("cpu:1/fp16/bf16", "precision is given twice"),
        ("cpu:1/0x8", "size '0x8'"),
        ("cpu:1/", "unknown condition ''"),
    ],
)
def test_mistakes_name_the_part(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_conditions(text)


def test_sizes() -> None:
    assert parse_size(" 180x320") == (180, 320)
    with pytest.raises(UserError, match="expected HEIGHTxWIDTH"):
        parse_size("48")
