"""Records to fronts, tables, plots and HTML. Reads a study's folder and nothing else."""

from harness.reporting.averages import bd_sentence, compare_fronts
from harness.reporting.comparison import compare
from harness.reporting.front import study_front
from harness.reporting.html import ReportFiles, write_report
from harness.reporting.paper import compare_with_paper
from harness.reporting.picks import choose, parse_pick, pick
from harness.reporting.pictures import Picture, Pictures, make_pictures
from harness.reporting.plots import draw_front_html, draw_front_png
from harness.reporting.profile_plots import draw_breakdown_png, draw_sweep_png
from harness.reporting.profiles import compare_profiles, load_profiles
from harness.reporting.published import load_published, published_dir
from harness.reporting.search_plots import draw_searches
from harness.reporting.study import Point, Study, load_study
from harness.reporting.summary import summarise
from harness.reporting.table import front_table, points_table

__all__ = [
    "Picture",
    "Pictures",
    "Point",
    "ReportFiles",
    "Study",
    "bd_sentence",
    "choose",
    "compare",
    "compare_fronts",
    "compare_profiles",
    "compare_with_paper",
    "draw_breakdown_png",
    "draw_front_html",
    "draw_front_png",
    "draw_searches",
    "draw_sweep_png",
    "front_table",
    "load_profiles",
    "load_published",
    "load_study",
    "make_pictures",
    "parse_pick",
    "pick",
    "points_table",
    "published_dir",
    "study_front",
    "summarise",
    "write_report",
]
