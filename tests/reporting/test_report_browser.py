"""The report in a real browser: drawn, pointed at, clicked, zoomed; nothing loaded or executed, nothing too wide."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from harness.core.importance import Importance
from harness.core.records import TrialRecord
from harness.reporting.html import render_report
from harness.reporting.page_data import describe_page
from harness.reporting.study import Study
from tests.records import (
    bicubic_baseline,
    one_of_each_state,
    search_trials,
    study_record,
    swinir_baseline,
    with_rungs,
)
from tests.reporting.conftest import Pictured

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EVIL = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
SPACE = "dimensions:\n  model.groups: {choices: [[1], [2]]}\n  model.channels: {low: 16, high: 64}\n"
SPACE += "  routing.gamma: {choices: [0.0, 0.5]}\n"
BASELINES = (swinir_baseline(), bicubic_baseline())


def every_kind() -> Study:
    """Networks trained, rejected, stopped and failed, one of them with a name that would like to be a script."""
    found: list[TrialRecord] = [*search_trials(8), *one_of_each_state()[1:4], with_rungs(), with_rungs(stopped=True)]
    trials = [
        record.model_copy(update={"record_id": f"trial-{number:05d}", "number": number, "network_id": f"{number:012x}"})
        for number, record in enumerate(found)
    ]
    trials[2] = trials[2].model_copy(update={"label": EVIL})
    return Study(study_record(name=f"quick {EVIL}", space=SPACE), tuple(trials), BASELINES)


def shares() -> tuple[Importance, ...]:
    found = {"model.channels": 0.7, "model.groups": 0.2, "interactions": 0.1}
    return tuple(Importance(metric=name, points=40, networks=8, shares=found) for name in ("psnr_db", "macs"))


class Opened(NamedTuple):
    """A page with what it complained of, and what it asked for besides itself."""

    page: "Page"
    complaints: list[str]
    requests: list[str]


Open = Callable[..., Opened]


@pytest.fixture
def show(browser: "Browser", tmp_path: Path) -> Iterator[Open]:
    contexts = []

    def open_page(text: str, *, width: int = 1280, scheme: Any = "light", scripts: bool = True) -> Opened:
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
        )
        contexts.append(context)
        page = context.new_page()
        opened = Opened(page, [], [])
        page.on("console", lambda message: opened.complaints.append(message.text))
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        page.on("request", lambda request: opened.requests.append(request.url))
        page.goto(path.as_uri())
        if scripts:
            page.wait_for_function("document.documentElement.dataset.drawn !== undefined")
        return opened

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def text() -> str:
    return render_report(every_kind(), shares())


def requests_elsewhere(opened: Opened) -> list[str]:
    own = opened.page.url
    return [url for url in opened.requests if url != own and not url.startswith("data:")]


def marks(page: "Page", chart: str, kind: str = "") -> int:
    return page.locator(f"#{chart} .pt{f'.{kind}' if kind else ''}").count()


def point_at(page: "Page", chart: str, kind: str, which: int = 0) -> str:
    """Move the pointer over a mark; return the text of the tooltip."""
    mark = page.locator(f"#{chart} .pt.{kind}").nth(which)
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    return page.locator("#tip").inner_text()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_chart_is_drawn_and_nothing_is_loaded(show: Open, text: str, width: int, scheme: str) -> None:
    opened = show(text, width=width, scheme=scheme)
    page = opened.page
    document = describe_page(every_kind())
    kinds = [document["kinds"][point["k"]] for point in document["points"]]
    assert len(document["panels"]) == 3
    for chart in ("front-0", "front-1", "front-2"):
        assert marks(page, chart, "front") == kinds.count("front")
        assert marks(page, chart, "other") == kinds.count("other")
        assert marks(page, chart, "baseline") == 1  # bicubic is a line
        assert page.locator(f"#{chart} line.level").count() == 1
        assert page.locator(f"#{chart} .star").count() == 1
    assert page.locator("#gamma-0 .series").count() == len(document["gamma"]["curves"])
    assert page.locator("#gammas .chart").count() == 3
    assert page.locator("#hypervolume .line").count() == 1
    assert page.locator("#parallel .wire").count() == len(document["lines"])
    assert page.locator("#rungs .series").count() == 2
    assert page.locator("#training .series").count() == len(document["training"]["curves"])
    drawn = page.evaluate("[...document.querySelectorAll('.chart')].map(chart => [chart.id, chart.dataset.drawn])")
    assert len(drawn) == 4 + 3 + 4
    assert all(int(count) > 0 for _, count in drawn)
    assert opened.complaints == []
    assert requests_elsewhere(opened) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("h1").evaluate("node => getComputedStyle(node.closest('body')).backgroundColor") == (
        "rgb(245, 246, 248)" if scheme == "light" else "rgb(18, 20, 24)"
    )


def test_axes_are_named_with_their_units(show: Open, text: str) -> None:
    page = show(text).page
    titles = page.evaluate(
        "[...document.querySelectorAll('.chart')].map(chart => "
        "[chart.id, [...chart.querySelectorAll('[data-axis]')].map(node => node.textContent)])"
    )
    assert len(titles) == 11
    counted = {"training step", "networks trained"}  # numbers of things
    for chart, names in titles:
        assert len(names) >= 2, chart
        if chart == "parallel":
            assert any("(dB)" in name for name in names)
            continue
        for name in names:
            bare = name.removesuffix(", log scale")
            assert bare in counted or re.search(r"\((dB|ms|G|k|0–1|no unit|share of windows)\)", bare), (chart, name)


def test_pointing_tells_the_configuration_and_a_click_keeps_it(show: Open, text: str) -> None:
    page = show(text).page
    told = point_at(page, "front-0", "front")
    for part in ("groups", "channels", "window", "γ=", "trial", "PSNR (dB)", "latency (ms)", "MACs (G)", "training"):
        assert part in told
    assert page.locator("#front-1 .ring").first.get_attribute("visibility") == "visible"  # the same point, elsewhere
    page.mouse.down()
    page.mouse.up()
    card = page.locator("#pinned")
    trial = re.search(r"trial (\d+)", told)
    assert trial is not None
    assert f"--pick trial:{trial[1]}" in card.inner_text()
    assert "--pick point:" in card.inner_text()
    page.keyboard.press("Escape")
    assert card.is_hidden()
    page.mouse.move(0, 0)
    page.locator("#front-0").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#tip").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#tip").inner_text() != first
    page.keyboard.press("Enter")
    assert card.is_visible()


def test_axes_can_be_chosen_for_every_pair(show: Open, text: str) -> None:
    page = show(text).page
    options = page.locator("#across option").all_inner_texts()
    assert any("SSIM" in option for option in options)
    for pair, names in (("PSNR / MACs", ["MACs (G)", "PSNR (dB)"]), ("MACs / latency", ["latency (ms)", "MACs (G)"])):
        page.get_by_role("button", name=pair, exact=True).click()
        titles = page.locator("#front-any [data-axis]").all_inner_texts()
        titles = page.evaluate("[...document.querySelectorAll('#front-any [data-axis]')].map(node => node.textContent)")
        assert all(title.startswith(name) for title, name in zip(titles, names, strict=True))
    page.select_option("#up", label=next(option for option in options if option.startswith("parameters")))
    title = page.evaluate("document.querySelector('#front-any [data-axis=y]').textContent")
    assert title.startswith("parameters (k)")
    page.get_by_role("button", name="swap").click()
    assert page.evaluate("document.querySelector('#front-any [data-axis=x]').textContent").startswith("parameters (k)")


@pytest.mark.parametrize(("kind", "words"), [("stopped", "after 33 steps"), ("rejected", "violates"), ("failed", "")])
def test_trials_that_did_not_finish_can_be_shown(show: Open, text: str, kind: str, words: str) -> None:
    page = show(text).page
    assert marks(page, "front-2", kind) == 0
    box = page.locator(f"#toggles input[data-kind={kind}]")
    box.check()
    shown = marks(page, "front-2", kind)
    assert shown > 0
    told = point_at(page, "front-2", kind, shown - 1)
    assert kind in told
    assert words in page.locator("#trials").inner_text() or words in told
    box.uncheck()
    assert marks(page, "front-2", kind) == 0


def test_published_results_are_marked_as_of_other_images(show: Open, text: str) -> None:
    page = show(text).page
    assert "other images, not comparable" in page.locator("#toggles").inner_text()
    page.locator("#toggles input[data-kind=published]").check()
    assert marks(page, "front-0", "published") == 0  # nobody published a latency of this machine
    assert marks(page, "front-2", "published") > 5
    assert "to convergence" in point_at(page, "front-2", "published")


def test_names_are_text_wherever_they_are_shown(show: Open, text: str) -> None:
    opened = show(text)
    page = opened.page
    for chart in ("front-0", "front-any"):
        for _ in range(page.locator(f"#{chart} .pt").count()):
            page.locator(f"#{chart}").focus()
            page.keyboard.press("ArrowRight")
            if "onerror" in page.locator("#tip").inner_text():
                break
        assert EVIL in page.locator("#tip").inner_text()
        page.keyboard.press("Enter")
        assert EVIL in page.locator("#pinned h3").inner_text()
        page.keyboard.press("Escape")
    assert page.title() != "taken"
    assert EVIL in page.title()
    assert page.locator("img[src=x]").count() == 0
    assert opened.complaints == []


def test_lines_can_be_kept_along_an_axis(show: Open, text: str) -> None:
    page = show(text).page
    wires, handle = page.locator("#parallel .wire"), page.locator("#parallel .handle").last
    box = handle.bounding_box()
    assert box is not None
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    assert box is not None
    x = box["x"] + box["width"] / 2
    page.mouse.move(x, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    hidden = page.locator("#parallel .wire.away").count()
    assert 0 < hidden < wires.count()
    page.get_by_role("button", name="show all lines").click()
    assert page.locator("#parallel .wire.away").count() == 0


def test_the_theme_can_be_chosen(show: Open, text: str) -> None:
    page = show(text, scheme="light").page
    button = page.locator("#theme")
    colours = set()
    for _ in range(3):
        button.click()
        colours.add((button.inner_text(), page.evaluate("getComputedStyle(document.querySelector('.pt.front')).fill")))
    assert colours == {
        ("Theme: light", "rgb(0, 114, 178)"),
        ("Theme: dark", "rgb(86, 180, 233)"),
        ("Theme: system", "rgb(0, 114, 178)"),
    }


def test_without_scripts_answer_and_tables_are_there(show: Open, text: str) -> None:
    page = show(text, scripts=False).page
    words = page.locator("main").inner_text()
    for part in ("fastest network that is at least as good as SwinIR-light", "Against SwinIR-light", "harness export"):
        assert part in words
    assert page.locator("button:visible").filter(has_text="copy").count() == 0
    assert page.locator("#comparison tbody tr").count() > 5


def test_crops_zoom_and_move_together_and_maps_can_be_chosen(show: Open, pictured: Pictured) -> None:
    opened = show(render_report(pictured.study, pictures=pictured.pictures))
    page = opened.page
    comparison = page.locator(".comparison").first
    views = comparison.locator(".view img")
    number = len(pictured.pictures.images[0].tiles)
    assert views.count() == number

    def places() -> set[str]:
        found: list[str] = views.evaluate_all(
            "images => images.map(image => { const b = image.getBoundingClientRect(), "
            "c = image.parentNode.getBoundingClientRect(); "
            "return [b.width / c.width, (b.x - c.x) / c.width, (b.y - c.y) / c.height].map(x => x.toFixed(2)).join() })"
        )
        return set(found)

    before = places()
    assert len(before) == 1
    comparison.locator("[data-zoom-by='1.5']").click()
    closer = places()
    assert len(closer) == 1
    assert closer != before
    view = comparison.locator(".view").nth(1)
    view.focus()
    page.keyboard.press("ArrowDown")
    moved = places()
    assert len(moved) == 1
    assert moved != closer
    view.hover()
    page.mouse.wheel(0, -300)
    assert len(places()) == 1
    assert places() != moved
    page.get_by_role("button", name="reset").first.click()
    assert places() == before
    assert all(page.locator("img").evaluate_all("images => images.map(i => i.complete && i.naturalWidth > 0)"))
    card = page.locator("#map-0")
    maps = [one for one in pictured.pictures.images[0].maps if one.name == pictured.pictures.images[0].maps[0].name]
    assert card.locator("rect").count() == maps[0].size[0] * maps[0].size[1]
    for one in maps:
        card.locator(".at-gamma").select_option(label=one.routing)
        hits = sum(any(mask[window] == "1" for mask in one.masks) for window in range(len(one.masks[0])))
        assert card.locator("rect.hit").count() == hits
        assert f"{100 * one.share:.1f} %" in card.inner_text()
    assert opened.complaints == []
    assert requests_elsewhere(opened) == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("name", ["nothing", "one point", "only baselines", "all rejected"])
def test_small_studies_complain_of_nothing(show: Open, name: str) -> None:
    studies = {
        "nothing": Study(study_record(), (), ()),
        "one point": Study(study_record(), (search_trials(1, (0.5,))[0],), ()),
        "only baselines": Study(study_record(), (), BASELINES),
        "all rejected": Study(study_record(), (one_of_each_state()[1],), BASELINES),
    }
    opened = show(render_report(studies[name]), width=390)
    assert opened.complaints == []
    assert opened.page.locator(".lead").inner_text()
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.slow
def test_two_thousand_points_are_drawn(show: Open) -> None:
    trials = [trial.model_copy(update={"network_id": f"{trial.number:012x}"}) for trial in search_trials(400)]
    study = Study(study_record(space=SPACE), tuple(trials), BASELINES)
    assert len(study.points) == 2000
    opened = show(render_report(study))
    assert marks(opened.page, "front-0") == len(describe_page(study)["points"]) - 1 - 15  # bicubic, published
    assert opened.complaints == []
    print(opened.page.evaluate("`drawn in ${document.documentElement.dataset.drawn} ms`"))
