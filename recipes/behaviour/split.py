"""
From chats with labelled turns to rows. Harmful turns are to be forgotten, and all others of the same chats to be kept.

A line of the file is a chat: `{"turns": [{"author": "Kim", "text": "...", "harmful": false}, ...]}`. Each turn becomes
a row, whose prompt is all that was said before. The loss is taken on the turn only.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


BEGINNING = "A chat begins."


def rows_of(turns: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of a chat, those to forget and those to keep."""
    rows: dict[str, list[dict[str, Any]]] = {"forget": [], "retain": []}
    said = [f"{turn['author']}: {turn['text']}" for turn in turns]
    for number, turn in enumerate(turns):
        prompt = "\n".join([BEGINNING, *said[:number], f"{turn['author']}:"])
        row = {
            "prompt": [{"role": "user", "content": prompt}],
            "completion": [{"role": "assistant", "content": turn["text"]}],
        }
        rows["forget" if turn["harmful"] else "retain"].append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chats", type=Path, nargs="?", default=Path("outputs/behaviour/chats.jsonl"))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/behaviour/rows"))
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    found = [rows_of(json.loads(line)["turns"]) for line in args.chats.read_text(encoding="utf-8").splitlines()]
    for name in ("forget", "retain"):
        rows = [row for chat in found for row in chat[name]]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (args.output_dir / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{len(rows)} rows are in {args.output_dir / name}.jsonl.")


if __name__ == "__main__":
    main()
