"""Writes the first texts of WMDP's corpora, each cut off: the retain objective keeps a state for each token."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from r2f_hf.data.loading import load_rows


# About 512 tokens.
CHARACTERS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forget_data", default="cais/wmdp-corpora:cyber-forget-corpus")
    parser.add_argument("--retain_data", default="cais/wmdp-corpora:cyber-retain-corpus")
    parser.add_argument("--texts", type=int, default=320, help="how many texts of each: 80 steps of 4")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/wmdp/rows"))
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, source in (("forget", args.forget_data), ("retain", args.retain_data)):
        texts = [row["text"][:CHARACTERS] for row, _ in zip(load_rows(source, name), range(args.texts), strict=False)]
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (args.output_dir / f"{name}.jsonl").write_text(rows, encoding="utf-8")
        print(f"{len(texts)} texts are in {args.output_dir / name}.jsonl.")


if __name__ == "__main__":
    main()
