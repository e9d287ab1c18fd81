"""What the README and the pages of docs/ say can be typed, can be typed; their links lead somewhere."""

import re
from pathlib import Path

from harness.cli.app import app
from harness.core.configs import CompressionConfig, QuantisationConfig, StoppingConfig, TrainingConfig
from harness.search.space import load_space
from harness.search.yaml_lines import parse_yaml

ROOT = Path(__file__).parents[1]
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
README = "".join(PAGES.values())


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```\n", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def test_the_example_spaces_are_valid() -> None:
    found = blocks("yaml")  # that of a network of one's own: see test_custom.py
    stopping, taught, compression = (
        next(text for text in found if text.startswith(section))
        for section in ("stopping:", "training:", "compression:")
    )
    text = next(text for text in found if "calibrate:" in text)
    assert len(found) == 5
    space = load_space(parse_yaml(text, "README.md"))
    assert len(space.routings()) == 5 + 5 + 1
    assert StoppingConfig.model_validate(parse_yaml(stopping, "README.md").values["stopping"]).factor == 3
    training = TrainingConfig.model_validate(parse_yaml(taught, "README.md").values["training"])
    assert training.distillation is not None
    assert training.distillation.follows_features
    beside = "scale: 4\ntraining: {steps: 2}\nobjectives: [psnr_db, macs]\n"
    compressed = parse_yaml(f"{beside}{compression}", "README.md")
    assert load_space(compressed).compresses


def test_settings_of_a_compression_stand_with_their_defaults() -> None:
    rows = re.findall(r"^\| `(left|cost|[\w.]+)`(?:, `\.(\w+)`)? \| (.+?) \|", README, re.MULTILINE)
    told: dict[str, str] = {}
    for name, other, defaults in rows:
        first, _, second = defaults.partition(", ")
        told |= {name: first, **({f"quantise.{other}": second} if other else {})}
    fields: dict[str, object] = {name: field.default for name, field in CompressionConfig.model_fields.items()}
    fields |= {f"quantise.{name}": field.default for name, field in QuantisationConfig.model_fields.items()}
    words = {"None": "null", "True": "true", "False": "false"}
    written = {name: told[name].strip("`") for name in fields}
    expected = {name: words.get(str(value), str(value)) for name, value in fields.items()}
    assert written == {**expected, "left": "–", "kinds": "all"}  # `left` has to be given in a space


def test_every_command_and_option_exists() -> None:
    import typer

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    typed = [line.split("#")[0].split() for block in blocks("") for line in block.splitlines()]
    used = [words for words in typed if words[:1] == ["harness"]]
    assert {words[1] for words in used} == set(commands)
    for words in used:
        command = commands[words[1]]
        command = getattr(command, "commands", {}).get(words[2], command)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        options = {word for word in words if word.startswith("--")}
        assert options <= known, (words, options - known)


def anchors(page: str) -> set[str]:
    """Return what headings of a page are called in links, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    for path, page in PAGES.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", page):
            if target.startswith("https://"):
                continue
            file, _, anchor = target.partition("#")
            there = path if not file else (path.parent / file).resolve()
            assert there.exists(), (path.name, target)
            assert not anchor or anchor in anchors(PAGES[there]), (path.name, target)


def test_the_readme_is_a_page_and_not_a_book() -> None:
    assert len(PAGES[ROOT / "README.md"].splitlines()) <= 300
