"""The report as HTML: its numbers are those of the files, and a browser shows it without overlap or errors."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report.conftest import unlearn
from report.page import CHROMIUM, Page, check_page, probed

from r2f_hf.report.html import write_report
from r2f_hf.report.questions import QUESTIONS


@pytest.fixture(scope="module")
def report(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([finished], tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return check_page(report.read_text(encoding="utf-8"))


def check_numbers(numbers: dict[tuple[str, str], float], folder: Path) -> None:
    """The numbers of a page are those of the reports in the folder."""
    evaluation = json.loads((folder / "evaluation" / "report.json").read_text())
    roles = {"after": evaluation["metrics"], "before": evaluation["compared"]["original"]}
    roles["gold"] = evaluation["compared"]["gold"]
    compared = 0
    for model, metrics in roles.items():
        for metric, value in metrics.items():
            if (metric, model) in numbers:
                assert numbers[metric, model] == value
                compared += 1
    attacks = json.loads((folder / "attacks" / "report.json").read_text())["attacks"]
    for attack, content in attacks.items():
        for variant, line in content["results"].items():
            for model, role in (("before", "original"), ("after", "unlearned"), ("gold", "gold")):
                assert numbers[f"{attack}/{variant}", model] == line[role]
                compared += 1
    assert compared == len(numbers) > 60


def test_the_numbers_are_those_of_the_reports(page: Page, finished: Path) -> None:
    check_numbers(page.numbers, finished)
    metrics = json.loads((finished / "evaluation" / "report.json").read_text())["metrics"]
    assert {name for name, model in page.numbers if model == "after" and "/" not in name} == set(metrics)


def test_the_page_has_all_its_parts(page: Page, finished: Path) -> None:
    for text in (
        "Is it gone?",
        "Can one tell that it was there?",
        "Is the rest kept?",
        "Does it last?",
        "to forget 6 rows",
        "r2f verify",
        "r2f undo",
        "Attacks that were not made: quantisation, sampling",
        "r2f unlearn --model_name_or_path=",
        "rate 1e-4",
        "all its steps were taken",
        "x86" if "x86" in page.text else "cores",
    ):
        assert text in page.text
    entry = json.loads((finished / "unlearned" / "ledger.jsonl").read_text())
    for value in (entry["weights"]["before"], entry["weights"]["after"], entry["digest"], *entry["request"]["rows"]):
        assert value in page.text
    names = {plot["aria-labelledby"].split("-title")[0] for plot in page.all("svg")}
    wanted = "gone told kept relearning attacks forget-rows retain-rows losses fidelity modules evaluated"
    curves = [f"curve-{number}" for number in range(5)]
    assert names == {f"r0-{name}" for name in [*wanted.split(), *curves]}
    assert "relearning: retain rows, rate 1e-4" in page.text


def test_there_is_no_text_unless_it_is_asked_for(
    report: Path, finished: Path, forget_rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    texts = [[row["question"], row["answer"]] for row in forget_rows]
    without = report.read_text(encoding="utf-8")
    assert not any(text in without for row in texts for text in row)
    html = write_report([finished], tmp_path / "report.html", texts).read_text(encoding="utf-8")
    assert all(text in check_page(html).text for row in texts for text in row)


def test_texts_of_rows_are_no_html(finished: Path, tmp_path: Path) -> None:
    texts = [["<script>alert('&')</script>", "</td>"]] * 6
    html = write_report([finished], tmp_path / "report.html", texts).read_text(encoding="utf-8")
    assert "<script>" not in html and check_page(html).text.count("<script>alert('&')</script>") == 6


def test_a_run_alone_has_a_report(world: Path, tmp_path: Path) -> None:
    output = unlearn(world, tmp_path / "unlearned", "--max_steps=6", "--learning_rate=0.6")
    html = write_report([output], tmp_path / "report.html").read_text(encoding="utf-8")
    page = check_page(html)
    assert "Forgotten, as far" not in page.text and "Here nobody has shown" in page.text
    assert "There is no gold" in page.text
    results = json.loads((output / "after_results.json").read_text())
    assert page.numbers["forget_probability", "after"] == results["eval_forget_probability"]
    assert ("forget_probability", "gold") not in page.numbers
    # The run has left the numbers of its rows.
    assert "r0-forget-rows" in html


def test_several_runs_side_by_side(world: Path, finished: Path, tmp_path: Path) -> None:
    others = [
        unlearn(world, tmp_path / name, "--max_steps=4", f"--learning_rate={rate}", f"--seed={seed}")
        for name, rate, seed in (("same", 0.3, 1), ("other", 0.2, 0))
    ]
    html = write_report([finished, *others], tmp_path / "report.html").read_text(encoding="utf-8")
    page = check_page(html)
    assert "3 runs side by side" in page.text
    assert "learning_rate 0.3" in page.text and "learning_rate 0.2" in page.text
    rows = html[html.index("<tbody") : html.index("</tbody>")]
    assert rows.count("<tr ") == 2 and "★" in rows
    # The two seeds of one setting are a range. Seeds may come in any order.
    assert "seeds 42, 1" in rows and " to <data" in rows
    assert len(page.all("details")) >= 3
    # Each run says which row it belongs to, and each question that was measured has a plot of all rows.
    assert page.text.count("npo + nll, learning_rate 0.3, seed") == 2
    names = {plot["aria-labelledby"].split("-title")[0] for plot in page.all("svg")}
    assert {name for name in names if "comparison" in name} == {f"comparison-{key}" for key in QUESTIONS}


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_chromium_shows_it(report: Path, finished: Path, width: int, dark: bool) -> None:
    found, console = probed(report, width, dark)
    assert console == []
    assert found["width"] == width
    assert found["wide"] == [] and found["cut"] == [] and found["overlaps"] == []
    assert found["texts"] > 50
    paper, ink = ("22, 25, 29", "232, 234, 237") if dark else ("255, 255, 255", "28, 31, 35")
    assert paper in found["paper"] and ink in found["ink"]
    check_numbers({(metric, model): value for metric, model, value, _ in found["numbers"]}, finished)
    assert all(float(shown) == pytest.approx(value, rel=5e-3) for *_, value, shown in found["numbers"])


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_chromium_prints_it(report: Path, tmp_path: Path) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'chromium'}"]
    pdf = tmp_path / "report.pdf"
    subprocess.run([CHROMIUM, *options, f"--print-to-pdf={pdf}", report.as_uri()], check=True, timeout=120)
    assert pdf.read_bytes()[:5] == b"%PDF-" and pdf.stat().st_size > 50_000
