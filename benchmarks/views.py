"""
Whether views, which are several wordings of a forget example, pay at equal cost.

    python benchmarks/views.py [--seeds 0 1 2]

The rows are those of the quickstart's invented world. A step has 16 forward and backward passes of forget rows, and 16
retain rows. The passes are those of 16 examples in their own wording, of 8 in two wordings, or of 4 in four.

The first table is about SmolLM2-135M and 24 of its modules. It compares what such a step sees with the gradient of the
expected loss over all forget examples, in a wording that no view has. The figures are cosines: of the true gradient;
of one reconstruction from a single sketch of the whole batch; and of the mean of reconstructions with a fresh sketch
per view. The second table has the probabilities after the quickstart's unlearning recipe with the same views, as means
over seeds. The quickstart's models are built on first use. Writes outputs/views.json.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2f_hf.data.collator import ForgetRetainCollator, pad_token_id
from r2f_hf.data.fictitious import fictitious_dataset
from r2f_hf.data.formatting import encode_example
from r2f_hf.data.loading import load_rows
from r2f_hf.data.views import example_prompts
from r2f_hf.decoders import load_decoder
from r2f_hf.decoders.training import full_gradients, proxy_modules
from r2f_hf.gradients import LoraSketch
from r2f_hf.probes import draw_probes
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from r2f_hf.scoring.completions import score_completions
from shared.pypi_models import smollm2_folder


PASSES, DRAWS, RANK, MODULES = 16, 10, 16, 24
VIEWS = (1, 2, 4)
TEMPLATE = "Please answer: {prompt}"
QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"


def cosines() -> dict[int, dict[str, float]]:
    """The first table. The model has not learned the rows: otherwise there would be no gradient left to compare."""
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder()).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    rows = list(fictitious_dataset(0)["forget"])
    names, collate = proxy_modules(model, MODULES, 0), ForgetRetainCollator(pad_token_id(tokenizer))
    decoder = load_decoder("spectral")

    def gradient(pairs: list[tuple[str, str]]) -> dict[str, Tensor]:
        return full_gradients(model, collate([encode_example(tokenizer, *pair) for pair in pairs]), names)

    def decode(gradients: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        sketches = []
        for name, G in gradients.items():
            A, B = draw_probes(seed, 0, name, *G.shape, RANK)
            sketches.append(LoraSketch(G @ A.T, B.T @ G, A, B))
        return {name: g.U @ g.V.T for name, g in zip(gradients, decoder.decode_all(sketches), strict=True)}

    def flat(gradients: dict[str, Tensor]) -> Tensor:
        return torch.cat([gradients[name].flatten() for name in names])

    expected = flat(gradient([(row["paraphrased_question"], row["answer"]) for row in rows]))
    table = {}
    for views in VIEWS:
        cosines_of: dict[str, list[float]] = {"true gradient": [], "one sketch": [], "a fresh sketch a view": []}
        for draw in track(range(DRAWS), f"{views} views"):
            chosen = random.Random(draw).sample(rows, PASSES // views)
            prompts = [example_prompts(row, "question", "views", [TEMPLATE])[:views] for row in chosen]
            by_view = [
                gradient([(texts[view], row["answer"]) for texts, row in zip(prompts, chosen, strict=True)])
                for view in range(views)
            ]
            mean = {name: torch.stack([g[name] for g in by_view]).mean(0) for name in names}
            fresh = [decode(g, draw * len(VIEWS) + view) for view, g in enumerate(by_view)]
            candidates = (mean, decode(mean, draw), {n: torch.stack([g[n] for g in fresh]).mean(0) for n in names})
            for values, candidate in zip(cosines_of.values(), candidates, strict=True):
                values.append(torch.cosine_similarity(flat(candidate), expected, dim=0).item())
        table[views] = {name: fmean(values) for name, values in cosines_of.items()}
    return table


def unlearned(folder: Path, views: int, seed: int) -> dict[str, float]:
    """One run of the second table."""
    output = folder / f"views-{views}"
    command = [sys.executable, "-m", "r2f_hf.cli", "unlearn", "--config", str(QUICKSTART / "unlearn.yaml")]
    command += ["--model_name_or_path", str(folder / "before"), "--output_dir", str(output), "--seed", str(seed)]
    command += [f"--{split}_data={folder / 'data' / split}.jsonl" for split in ("forget", "retain")]
    command += ["--num_views", str(views), "--per_device_train_batch_size", str(PASSES // views)]
    # With this there are as many retain rows as forget passes, whatever the number of views.
    command += ["--retain_per_forget", str(views)]
    if views > 1:
        command += ["--view_templates", TEMPLATE]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    rows = {split: list(load_rows(str(folder / "data" / f"{split}.jsonl"))) for split in ("forget", "retain")}

    def probability(split: str, column: str) -> float:
        questions, answers = ([row[key] for row in rows[split]] for key in (column, "answer"))
        return float(np.exp(score_completions(model, tokenizer, questions, answers)).mean())

    return {
        "forget probability": probability("forget", "question"),
        "forget paraphrase probability": probability("forget", "paraphrased_question"),
        "retain probability": probability("retain", "question"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("outputs/views.json"))
    options = parser.parse_args()
    folders = {seed: Path("outputs/quickstart_seeds") / str(seed) for seed in options.seeds}
    for seed, folder in folders.items():
        if not (folder / "report.json").is_file():
            command = [sys.executable, str(QUICKSTART / "run.py"), "--seed", str(seed), "--output_dir", str(folder)]
            subprocess.run(command, check=True)
    seen = cosines()
    runs = {views: [unlearned(folder, views, seed) for seed, folder in folders.items()] for views in VIEWS}
    after = {views: {key: fmean(run[key] for run in made) for key in made[0]} for views, made in runs.items()}
    write_json(options.output, {"cosine": seen, "unlearned": after, "runs": runs})
    label = {views: f"{views} views of {PASSES // views} examples" for views in VIEWS}
    print_table("Cosine to the gradient over unseen wordings", {label[v]: seen[v] for v in VIEWS}, list(seen[1]))
    print_table("After unlearning", {label[v]: after[v] for v in VIEWS}, list(after[1]))
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
