"""`r2f train-decoder`: trains a gradient decoder on the gradients that a proxy model has on text."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from accelerate import PartialState
from torch import Tensor

from .. import __version__
from ..data.collator import ForgetRetainCollator, pad_token_id
from ..data.formatting import IGNORE_INDEX, encode_example
from ..data.loading import load_rows
from ..data.rows import check_rows
from ..decoders import SpectralDecoder
from ..decoders.training import collect_pairs, fit, proxy_modules
from ..models.loading import ModelArguments, load_model
from ..report import print_table
from ..scoring.completions import context_length
from .recipes import parse_recipe


@dataclass
class TrainDecoderArguments:
    r"""
    What `r2f train-decoder` trains on, and how.

    The command computes full gradients of a proxy model, and trains a [`SpectralDecoder`] to reconstruct them from
    their sketches. It prints how well the decoder does on layers and batches that the training did not see. The proxy
    is chosen by the options of [`ModelArguments`].

    ```bash
    r2f train-decoder --model_name_or_path my-proxy-model --data text.jsonl --output_dir decoder
    ```

    Args:
        data (`str`, *optional*):
            Rows of text. They must be given, as a file (for example `.jsonl`, `.csv` or `.parquet`) or as a Hub
            dataset (`owner/name:config:split`).
        prompt_column (`str`, *optional*, defaults to `"question"`):
            Column of the prompt; `"none"` for plain text.
        completion_column (`str`, *optional*, defaults to `"answer"`):
            Column of the text that the loss is taken on.
        max_length (`int`, *optional*, defaults to `256`):
            Most tokens of an example. Longer ones are cut on the right.
        output_dir (`str`, *optional*, defaults to `"decoder"`):
            Folder for the decoder.
        ranks (`list[int]`, *optional*, defaults to `[4, 8, 16, 32, 64]`):
            Ranks of the probes.
        batch_sizes (`list[int]`, *optional*, defaults to `[1, 4, 16]`):
            Rows per batch, which the batches take in turns. The spectrum of a gradient depends on them.
        num_batches (`int`, *optional*, defaults to `24`):
            Number of batches, at least 4. Each gives one full gradient of the proxy. A quarter of them validates.
        num_modules (`int`, *optional*, defaults to `48`):
            Number of linear modules of the proxy, drawn at random. A quarter of its layers validates.
        steps (`int`, *optional*, defaults to `2000`):
            Number of training steps.
        learning_rate (`float`, *optional*, defaults to `0.01`):
            Highest learning rate of the schedule.
        channels (`int`, *optional*, defaults to `16`):
            Width of the decoder's hidden layers.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything that is drawn.
    """

    _argument_group_name: ClassVar[str] = "The training"

    data: str | None = field(default=None, metadata={"help": "Rows of text: a file, or owner/name:config:split."})
    prompt_column: str = field(default="question", metadata={"help": "Column of the prompt; none for plain text."})
    completion_column: str = field(default="answer", metadata={"help": "Column that the loss is taken on."})
    max_length: int = field(default=256, metadata={"help": "Most tokens of an example. Longer ones are cut."})
    output_dir: str = field(default="decoder", metadata={"help": "Folder for the decoder."})
    ranks: list[int] = field(default_factory=lambda: [4, 8, 16, 32, 64], metadata={"help": "Ranks of the probes."})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 4, 16], metadata={"help": "Rows per batch, in turns."})
    num_batches: int = field(default=24, metadata={"help": "Number of batches. Each gives one full gradient."})
    num_modules: int = field(default=48, metadata={"help": "Number of linear modules, drawn at random."})
    steps: int = field(default=2000, metadata={"help": "Number of training steps."})
    learning_rate: float = field(default=0.01, metadata={"help": "Highest learning rate of the schedule."})
    channels: int = field(default=16, metadata={"help": "Width of the decoder's hidden layers."})
    seed: int = field(default=0, metadata={"help": "Seed of everything that is drawn."})

    def __post_init__(self):
        for name in ("max_length", "num_batches", "num_modules", "steps", "learning_rate", "channels"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        for name in ("ranks", "batch_sizes"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"`{name}` must be positive numbers, got {getattr(self, name)}.")
        if self.num_batches < 4:
            raise ValueError(f"`num_batches` must be at least 4, so that one validates; got {self.num_batches}.")


# The dataclasses whose fields are the options.
OPTIONS = (TrainDecoderArguments, ModelArguments)


def prepare(argv: Sequence[str]) -> Callable[[], None]:
    """Read the arguments, the rows and the proxy of `r2f train-decoder`, and encode the batches."""
    args, model_arguments = parse_recipe("train-decoder", OPTIONS, argv)
    if args.data is None:
        raise ValueError("No text is named. Set `data` to a file of rows or to owner/name:config:split.")
    rows = load_rows(args.data)
    columns = [column for column in (args.prompt_column, args.completion_column) if column != "none"]
    check_rows(rows, "data", columns)
    model, tokenizer = load_model(model_arguments)
    examples = [
        encode_example(
            tokenizer,
            "" if args.prompt_column == "none" else row[args.prompt_column],
            row[args.completion_column],
            min(args.max_length, context_length(model)),
        )
        for row in rows
        # Text files have empty lines, which are left out.
        if all(row[column] for column in columns)
    ]
    # No position before the first token could predict it, so its label does not count.
    examples = [example for example in examples if any(label != IGNORE_INDEX for label in example["labels"][1:])]
    if not examples:
        raise ValueError(
            f"No row of {args.data} has a token to take the loss on: all are empty, or their prompts already fill "
            f"`max_length={args.max_length}`. Raise `max_length`, or choose other rows."
        )
    shuffle = random.Random(args.seed)
    collate = ForgetRetainCollator(pad_token_id(tokenizer, model))
    batches = []
    for index in range(args.num_batches):
        size = min(args.batch_sizes[index % len(args.batch_sizes)], len(examples))
        batches.append(collate(shuffle.sample(examples, size)))
    return partial(train_decoder, args, model_arguments.model_name_or_path, model, batches)


def train_decoder(
    args: TrainDecoderArguments, proxy: str, model: torch.nn.Module, batches: list[dict[str, Tensor]]
) -> None:
    """Train the decoder, print how well it does on what it did not see, and save it with its card."""
    model = model.to(PartialState().device).eval()
    names = proxy_modules(model, args.num_modules, args.seed)
    pairs = collect_pairs(model, batches, names, args.ranks, args.seed)
    # The decoder is so small that the CPU trains it faster.
    pairs = {key: pair.to("cpu") for key, pair in pairs.items()}
    torch.manual_seed(args.seed)
    decoder = SpectralDecoder(args.channels)
    results = fit(decoder, pairs, args.steps, args.learning_rate, args.seed)
    table = {f"{rank} rows": cosines for rank, cosines in results.items()}
    columns = ["train", "validation", "best_tau", "inverse"]
    print_table("Mean cosine to the full gradient", table, columns)
    ranks = ", ".join(map(str, args.ranks))
    lines = [
        f"Trained by r2f-hf {__version__} on gradients of {Path(proxy).name}: {args.num_batches} batches, "
        f"{len(names)} modules, probes of rank {ranks}, seed {args.seed}. Mean cosine to the full gradient on layers "
        "and batches that the training did not see, by decodable rows of the probes:",
        "",
        "| rows | this decoder | best fixed Tikhonov threshold | plain inverse |",
        "|---|---|---|---|",
        *(
            f"| {rank} | {cosines['validation']:.3f} | {cosines['best_tau']:.3f} | {cosines['inverse']:.3f} |"
            for rank, cosines in results.items()
            if "validation" in cosines
        ),
    ]
    decoder.training_record = "\n".join(lines)
    # `save_pretrained` would keep a card that is there already, which may be another decoder's.
    (Path(args.output_dir) / "README.md").unlink(missing_ok=True)
    decoder.save_pretrained(args.output_dir)
    print(f"The decoder is in {args.output_dir}. Use it with `decoder: {args.output_dir}` in a recipe.")
