"""One step of SGD on a LoRA adapter of Gaussian probes. Saves the adapters before and after it, for `r2f decode`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2f_hf.data.collator import ForgetRetainCollator, pad_token_id
from r2f_hf.data.formatting import encode_example
from r2f_hf.data.loading import load_rows
from r2f_hf.probes import find_probes, group_probes


# Small enough that the model does not notice the probes.
SCALING = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="outputs/quickstart/before")
    parser.add_argument("--data", default="outputs/quickstart/data/forget.jsonl")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/decode"))
    parser.add_argument("--rank", type=int, default=16)
    # The gradients of the pairs are as small as their scaling. A step has to be large compared with fp32's rounding.
    parser.add_argument("--learning_rate", type=float, default=1 / SCALING)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    config = LoraConfig(
        r=args.rank, lora_alpha=SCALING * args.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    for group in group_probes(find_probes(model)):
        group.draw(args.seed, step=0)
    model.save_pretrained(args.output_dir / "before")

    examples = [encode_example(tokenizer, row["question"], row["answer"]) for row in load_rows(args.data)]
    loss = model(**ForgetRetainCollator(pad_token_id(tokenizer))(examples)).loss
    loss.backward()
    torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=args.learning_rate).step()
    model.save_pretrained(args.output_dir / "after")
    print(
        f"A step on {len(examples)} rows, of loss {loss.item():.3g}, lies between {args.output_dir}/before and after."
    )


if __name__ == "__main__":
    main()
