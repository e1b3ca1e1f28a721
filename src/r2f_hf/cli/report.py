"""`r2f report RUN...`: one HTML file that says what was forgotten, what was kept, and what was not measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ..data.formats import recognise_format
from ..data.loading import load_rows
from ..report import print_table
from ..report.html import write_runs
from ..report.questions import Answer, answers
from ..report.run import Run, read_run
from ..runs.ledger import row_hash


MODELS = ("before", "after", "gold")


def build_parser() -> argparse.ArgumentParser:
    """The arguments of `r2f report`."""
    parser = argparse.ArgumentParser(
        prog="r2f report",
        description="Write what is known about a run, or about several side by side, as one HTML file.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a run, or the folder that it lies in")
    parser.add_argument("--out", default="report.html", help="the file to write")
    parser.add_argument(
        "--with_text",
        metavar="ROWS",
        help="show the texts of the forget rows too: the file or the dataset that the run has forgotten",
    )
    for kind in ("prompt", "completion"):
        parser.add_argument(f"--{kind}_column", help=f"column of the {kind}, if `r2f unlearn` was given one")
    return parser


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments of `r2f report`, and the files of the runs."""
    args = build_parser().parse_args(argv)
    if Path(args.out).is_dir():
        raise ValueError(f"{args.out} is a folder. Name the file to write: --out {Path(args.out) / 'report.html'}")
    runs = [read_run(folder) for folder in args.runs]
    texts = None
    if args.with_text is not None:
        if len(runs) > 1:
            raise ValueError("`--with_text` shows the rows of one run. Name one run.")
        texts = texts_of(args.with_text, runs[0], args.prompt_column, args.completion_column)
    return partial(write, runs, args.out, texts)


def texts_of(
    source: str, run: Run, prompt_column: str | None = None, completion_column: str | None = None
) -> list[list[str]]:
    """The texts of the forget rows, which have to be those that the run was asked to forget."""
    rows = load_rows(source, "forget")
    row_format = recognise_format(rows[0], "forget", prompt_column, completion_column)
    texts = [row_format.texts(row) for row in rows]
    request = run.entry["request"]
    if [row_hash(request["salt"], row) for row in texts] != request["rows"]:
        raise ValueError(
            f"The rows of {source} are not those that {run.folder} was asked to forget: their hashes are not those of "
            "its ledger. Name the rows that the run was given, in their order."
        )
    return texts


def write(runs: list[Run], out: str, texts: list[list[str]] | None) -> None:
    """Write the report, print the answers to the four questions if it is of one run, and say where it is."""
    if len(runs) == 1:
        print_answers(answers(runs[0]))
    print(f"The report is {write_runs(runs, out, texts)}.")


def print_answers(found: Mapping[str, Answer]) -> None:
    """Print a table per question, with the models side by side, and what decides."""
    for answer in found.values():
        title = f"{answer.question} {answer.word.capitalize()}"
        rows = {
            figure.words or figure.name: {
                column: value for column in MODELS if (value := getattr(figure, column)) is not None
            }
            for figure in answer.figures
        }
        if rows:
            print_table(title, rows, MODELS)
        else:
            print(f"{title}.")
        print(" ".join(answer.reasons))
