"""How long a report takes to open: `python results/benchmarks/report.py [FILE.html]`, from the top of a checkout.

Without a file, the report of a made-up study of 2,000 points (400 networks at 5 γ) is opened. Times are from the start
of the navigation to two frames after the last chart was drawn, each in a fresh browser context, with nothing cached.
Wants the extra `dev` and a Chromium (HARNESS_BROWSER names one that is not on the path).
"""

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import sync_playwright

from harness.reporting.html import render_report
from harness.reporting.study import Study
from tests.records import bicubic_baseline, search_trials, study_record, swinir_baseline
from tests.reporting.conftest import find_browser

RUNS = 7
SPACE = "dimensions: {model.groups: 1, model.channels: 2, model.window: 3, routing.gamma: 4}"
# Charts of plotly, which older reports drew, are there when each has its SVG.
DRAWN = """() => document.documentElement.dataset.drawn !== undefined || (document.readyState === 'complete' &&
  document.querySelectorAll('.plotly-graph-div').length > 0 &&
  [...document.querySelectorAll('.plotly-graph-div')].every(node => node.querySelector('.main-svg .xtick')))"""
FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"


def make_study() -> Study:
    """Return a study of 2,000 points."""
    trials = [trial.model_copy(update={"network_id": f"{trial.number:012x}"}) for trial in search_trials(400)]
    return Study(study_record(space=SPACE), tuple(trials), (swinir_baseline(), bicubic_baseline()))


def main() -> None:
    """Open the report again and again, and print how long it took."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        path = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(folder) / "report.html"
        if len(sys.argv) < 2:
            path.write_text(render_report(make_study()), encoding="utf-8")
        browser = started.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        milliseconds = []
        for _ in range(RUNS):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            page.goto(path.as_uri(), wait_until="commit")
            page.wait_for_function(DRAWN, polling="raf")
            milliseconds.append(page.evaluate(FRAMES))
            marks = page.locator("svg path").count()
            context.close()
        print(f"{path.stat().st_size / 1e6:.2f} MB, {marks:,} marks and lines, {browser.version}")
        print(f"drawn after {statistics.median(milliseconds):.0f} ms", [round(one) for one in milliseconds])
        browser.close()


if __name__ == "__main__":
    main()
