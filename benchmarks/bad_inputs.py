"""
Does every input end in success, or in an error of the project's own before any weight has changed?

    python benchmarks/bad_inputs.py [--seconds 600] [--seed 0] [--quick] [--output outputs/bad_inputs.json]

Draws rows and what holds them, column names, chat templates, tokenizers, settings and models at random (hypothesis). A
trial hands them to R2FTrainer, unlearns for one or two steps and evaluates. It is

    trained     the run ended. The weights that were to change have changed and are finite, no other one has, and the
                tokens that were trained on hold the question and the answer of each row
    refused     the project, or a library in a message that names the setting, has raised an error. No weight has
                changed, and the model is as it was
    a finding   everything else: an error from the depth of a library, a changed weight before an error, NaN, a run
                that trained on something else, and a text to forget in a message, a log or a file

Findings are made as small as they get, and printed. Ends with an error if there is one. What was found became tests.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import torch
import transformers
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.fuzz_models import CHANGES, CONFIGS, MODELS, TEMPLATES, TOKENIZERS
from shared.fuzz_rows import drawn_sets
from shared.fuzz_settings import drawn_settings
from shared.fuzz_trial import Trial, Verdict, run


PARTS = ("rows", "container", "template", "tokenizer", "settings", "model")
# Formats that need no chat template, and models whose experts have to be left out.
COMPLETE = ("question", "views", "completion", "text", "texts", "named")
MIXTURES = ("mixtral", "qwen moe")
# Trials per search. A search begins with the smallest trial, and hypothesis varies within one what it has seen in it.
ROUND = 200
# Seconds to make a finding smaller: many others may wait.
SHRINKING = 20.0


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    """
    A trial. At most three of its parts are odd: if all were, the first of them would be refused, and the others would
    never be reached.
    """
    odd = draw(st.sets(st.sampled_from(PARTS), max_size=3))
    changed = draw(st.sampled_from(sorted(odd))) if odd else ""
    sets = [draw(drawn_sets("forget", "rows" in odd, "container" in odd))]
    others = {"retain", *draw(st.sets(st.just("holdout")))}
    for each in sorted(others):
        either = draw(st.booleans())
        sets.append(draw(drawn_sets(each, "rows" in odd and either, "container" in odd and either)))
    conversations = any(each.format not in COMPLETE for each in sets)
    template = draw(st.sampled_from(list(TEMPLATES))) if "template" in odd else None
    if template is None and (conversations or draw(st.booleans())):
        template = "chatml"
    tokenizer = draw(st.sampled_from(list(TOKENIZERS))) if "tokenizer" in odd else "bytes"
    own = {"prompt_column": "frage", "completion_column": "antwort"} if sets[0].format == "named" else {}
    chosen = draw(drawn_settings(4 if "settings" in odd else 1)) if "settings" in odd or not odd else {}
    name, dtype, change = draw(st.sampled_from(list(CONFIGS))), "float32", None
    if name in MIXTURES and changed != "model":
        # Their experts have to be left out.
        chosen = {"exclude_modules": ["experts"]} | chosen
    if "model" in odd:
        name = draw(st.sampled_from(MODELS))
        dtype = draw(st.sampled_from(("float32", "bfloat16", "float16", "float64")))
        change = draw(st.none() | st.sampled_from(list(CHANGES)))
    calls = draw(st.sampled_from(("train", "unlearn")))
    return Trial((name, dtype, change), tokenizer, template, own | chosen, tuple(sets), calls)


@dataclass
class Search:
    """
    Looks for findings until the time is up.

    Args:
        seed (`int`):
            Seed of everything that is drawn.
        seconds (`float`):
            How long.
    """

    seed: int
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> None:
        """Search, round by round: each ends with a new finding, or with its last trial."""
        self.end = time.monotonic() + self.seconds
        draw = random.Random(self.seed)
        while time.monotonic() < self.end:
            self.round(random.Random(draw.getrandbits(64)))

    def round(self, draw: random.Random) -> None:
        self.target, self.until, self.known = "", self.end, {}
        rules = settings(
            max_examples=ROUND,
            # What was found before is in tests. A database would make a run depend on those before it.
            database=None,
            deadline=None,
            # Neither is there anything to reuse or to aim at, and `explain` would trace every line of torch.
            phases=(Phase.generate, Phase.shrink),
            # A trial takes long, and large rows are the point.
            suppress_health_check=list(HealthCheck),
        )
        try:
            smallest = find(trials(), self.is_new, settings=rules, random=draw)
        except NoSuchExample:
            return
        verdict = self.known[repr(smallest)]
        self.findings[verdict.signature] |= {"example": repr(smallest), "detail": verdict.detail}
        print(f"\nFINDING {verdict.signature}\n{smallest}\n{verdict.detail}\n", flush=True)

    def is_new(self, trial: Trial) -> bool:
        """Run a trial. Whether it is a finding that was not there yet; while one is made smaller, whether it is it."""
        key = repr(trial)
        if key not in self.known:
            if time.monotonic() > self.until:
                return False
            verdict = self.known[key] = run(trial)
            if not self.target:
                self.count(verdict)
        verdict = self.known[key]
        if self.target:
            return verdict.signature == self.target
        if verdict.kind == "finding" and "example" not in self.findings[verdict.signature]:
            self.target, self.until = verdict.signature, time.monotonic() + SHRINKING
            self.findings[verdict.signature]["example"] = key
            return True
        return False

    def count(self, verdict: Verdict) -> None:
        if verdict.kind == "unbuildable":
            return
        self.counts["tried"] += 1
        self.counts[verdict.kind] += 1
        if verdict.kind == "refused":
            self.refusals[verdict.signature] += 1
        if verdict.kind == "finding":
            found = self.findings.setdefault(verdict.signature, {"times": 0})
            found["times"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    parser.add_argument("--output", type=Path, default=Path("outputs/bad_inputs.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_default_handler()
    # Trainer collects garbage after each run, and would look through all libraries for two thirds of a trial's time.
    gc.freeze()
    search = Search(options.seed, 5.0 if options.quick else options.seconds)
    search.run()
    report = {
        "seed": options.seed,
        "seconds": search.seconds,
        **{name: search.counts[name] for name in ("tried", "refused", "trained")},
        "findings": [{"signature": name} | found for name, found in search.findings.items()],
        "refusals": dict(search.refusals.most_common()),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, report)
    counts = {name: report[name] for name in ("tried", "refused", "trained")}
    counts |= {"findings": len(search.findings), "places that refuse": len(search.refusals)}
    print_table("Inputs at random", {name: {"inputs": str(count)} for name, count in counts.items()}, ["inputs"])
    print(f"The report is {options.output}.")
    raise SystemExit(1 if search.findings else 0)


if __name__ == "__main__":
    main()
