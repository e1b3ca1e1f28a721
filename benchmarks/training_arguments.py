"""
Whether R2FTrainer honours each field of TrainingArguments, or refuses it by name before any weight changes.

    python benchmarks/training_arguments.py [--write] [--only FIELD ...]

Every field is set to a value other than its default, in runs of four steps of a tiny model on the CPU: on one process,
on two, and on two that take themselves for two nodes. The Hub and the tracker are stand-ins. A field is

    honoured               an effect was looked for and found: the table says which
    no effect, by design   batches, weights and metrics are those of a run without it, bit for bit
    refused                an error names it, and no weight has changed
    not tried here         it needs what this machine does not have

Prints the table in Markdown, and with --write puts it into docs/training_arguments.md. Ends with an error if a field
is none of these, or other than shared/arguments_cases.py, arguments_special.py and arguments_processes.py expect.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
import transformers
from accelerate import ParallelismConfig
from rich.progress import track
from transformers import TrainingArguments

from shared.arguments_cases import CASES, HONOURED, NO_EFFECT, NOT_TRIED, REFUSED, Case
from shared.arguments_processes import ON_TWO_NODES, ON_TWO_PROCESSES
from shared.arguments_run import Bench
from shared.arguments_special import CASES as SPECIAL_CASES


PAGE = Path(__file__).parents[1] / "docs" / "training_arguments.md"
LAUNCHES = {"two processes": ON_TWO_PROCESSES, "two nodes": ON_TWO_NODES}
MEANINGS = {
    HONOURED: "the effect was looked for and found; the table says by what it shows",
    NO_EFFECT: "batches, weights and metrics are those of a run without it, bit for bit",
    REFUSED: "an error names it, and no weight has changed; the table has the message",
    NOT_TRIED: "it needs what the machine did not have",
}

# What became of a case: whether it is as expected, and the message of a refusal.
Outcome = tuple[bool, str]


def run_case(case: Case, bench: Bench) -> Outcome:
    """Try a case. An error that is not expected is printed."""
    if case.check is None:
        return True, ""
    try:
        found = case.check(bench)
    except Exception:
        traceback.print_exc()
        return False, ""
    return bool(found), found if isinstance(found, str) else ""


def run_worker(launch: str, root: Path) -> None:
    """Try the cases of a launch as one of its processes, and leave the outcomes in the folder."""
    bench = Bench(root)
    outcomes = [run_case(case, bench) for case in LAUNCHES[launch]]
    (root / f"rank{os.environ['RANK']}.json").write_text(json.dumps(outcomes))
    torch.distributed.destroy_process_group()


def run_launch(launch: str, root: Path) -> list[Outcome]:
    """Start two processes. A case is as expected if it is so on both."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    nodes = launch == "two nodes"
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common["LOCAL_WORLD_SIZE"] = "1" if nodes else "2"
    # Each node has a disk of its own.
    roots = [root / (f"{launch} {rank}" if nodes else launch) for rank in range(2)]
    processes = []
    for rank, folder in enumerate(roots):
        folder.mkdir(parents=True, exist_ok=True)
        place = {"RANK": str(rank), "LOCAL_RANK": "0" if nodes else str(rank)}
        command = [sys.executable, __file__, "--worker", launch, str(folder)]
        processes.append(subprocess.Popen(command, env=os.environ | common | place))
    for process in processes:
        process.wait(timeout=900)
    files = [folder / f"rank{rank}.json" for rank, folder in enumerate(roots)]
    both = [json.loads(file.read_text()) for file in files]
    return [(all(good for good, _ in pair), pair[0][1]) for pair in zip(*both, strict=True)]


def setting(name: str, value: object) -> str:
    """A setting as it is written in a script."""
    if isinstance(value, ParallelismConfig):
        value = f"ParallelismConfig(cp_size={value.cp_size})"
    return f"`{name}={value if name == 'parallelism_config' else repr(value)}`"


def render_row(case: Case, message: str, launch: str | None) -> str:
    """A row of the table."""
    shown = f"`{case.field}`" if case.value is None else setting(case.field, case.value)
    more = [setting(name, value) for name, value in case.settings.items() if name != case.field]
    shown += f" with {', '.join(more)}" * bool(more) + f" on {launch}" * (launch is not None)
    return f"| {shown} | {case.verdict} | {message or case.how} |"


def render(rows: Sequence[tuple[Case, str, str | None]]) -> str:
    """The page."""
    verdicts = Counter(verdict for _, verdict in {(case.field, case.verdict) for case, _, _ in rows})
    names = [field.name for field in fields(TrainingArguments)]
    rows = sorted(rows, key=lambda row: names.index(row[0].field))
    command = "`python benchmarks/training_arguments.py --write`"
    lines = [
        "# TrainingArguments, field by field",
        "",
        f"{command} made this page, with transformers {transformers.__version__}.",
        "",
        *textwrap.wrap(
            "[`R2FConfig`](reference/config.md) takes all fields of `TrainingArguments`. The "
            f"table has all {len(names)}. Each that this machine has the means for was set to a value other than its "
            "default, in runs of four steps of a tiny model on a CPU. The Hub and the tracker were stand-ins.",
            width=119,
        ),
        "",
        "| verdict | fields | what it says |",
        "|---|---|---|",
        *(f"| {verdict} | {verdicts[verdict]} | {meaning} |" for verdict, meaning in MEANINGS.items()),
        "",
        "A field counts once for each of its verdicts.",
        "",
        "| setting | verdict | how it shows, or why |",
        "|---|---|---|",
        *(render_row(*row) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/training_arguments.md")
    parser.add_argument("--only", nargs="+", help="fields to try on one process, and no others")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if options.worker:
        run_worker(options.worker[0], Path(options.worker[1]))
        return
    cases = [case for case in [*CASES, *SPECIAL_CASES] if not options.only or case.field in options.only]
    with tempfile.TemporaryDirectory(prefix="arguments-") as root:
        bench = Bench(Path(root))
        tried = [(case, run_case(case, bench), None) for case in track(cases, "Fields")]
        if not options.only:
            for launch, its_cases in LAUNCHES.items():
                outcomes = run_launch(launch, Path(root))
                tried += [(*pair, launch) for pair in zip(its_cases, outcomes, strict=True)]
    page = render([(case, message, launch) for case, (_, message), launch in tried])
    print(page)
    wrong = [f"{case.field}={case.value!r} is not {case.verdict}" for case, (good, _), _ in tried if not good]
    if not options.only:
        names = {field.name for field in fields(TrainingArguments)}
        known = {case.field for case, _, _ in tried}
        wrong += [f"{name} is not tried" for name in sorted(names - known)]
        wrong += [f"{name} is no field of transformers {transformers.__version__}" for name in sorted(known - names)]
    if wrong:
        sys.exit("\n".join(wrong))
    if options.write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
