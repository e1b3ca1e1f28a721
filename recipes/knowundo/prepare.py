"""Writes KnowUnDo's rows to forget and to keep (`train`), which its files hold next to those to measure on (`val`)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


FILES = {"forget": "unlearn.json", "retain": "retention.json"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with KnowUnDo's folders `privacy` and `copyright`")
    parser.add_argument("--kind", choices=["privacy", "copyright"], default="privacy")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/knowundo/rows"))
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, file in FILES.items():
        rows = json.loads((args.data / args.kind / file).read_text(encoding="utf-8"))["train"]
        text = "".join(json.dumps({key: row[key] for key in ("text", "labels")}) + "\n" for row in rows)
        (args.output_dir / f"{name}.jsonl").write_text(text, encoding="utf-8")
    print(f"The rows are in {args.output_dir}.")


if __name__ == "__main__":
    main()
