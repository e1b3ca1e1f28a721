"""
The same twenty facts in each dataset format and file: `r2f unlearn` has to give the same losses.

    python benchmarks/formats.py

Each run takes two steps on a tiny model of random weights, with the facts in another format or kind of file. The
table has the loss of the forget set before the first step, and the loss of both steps. Plain texts have the loss on
every token, and the others on the answers. A third group has conversations that call tools, each with an argument
that the others do not have. Within a group the rendered text is the same, so the losses may differ by 1e-6 at most.
The exit code is 1 if they differ by more.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from r2f_hf import cli
from r2f_hf.data.fictitious import fictitious_dataset
from r2f_hf.report import print_table
from shared.faults_worker import build_model, build_tokenizer


TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}{% if message.tool_calls %}"
    "{{ message.tool_calls | tojson }}{% endif %}"
    "{{ message.role }}: {{ message.content or '' }}{{ eos_token if message.role == 'assistant' else '\n' }}"
    "{% endfor %}{{ 'assistant: ' if add_generation_prompt else '' }}"
)
FACTS = 20
TOLERANCE = 1e-6

Row = dict[str, Any]


def user(row: Row) -> Row:
    return {"role": "user", "content": row["question"]}


def assistant(row: Row) -> Row:
    return {"role": "assistant", "content": row["answer"]}


def rendered_prompt(row: Row) -> str:
    return f"user: {row['question']}\nassistant:"


ANSWERS: dict[str, Callable[[Row], Row]] = {
    "question, answer": lambda row: {"question": row["question"], "answer": row["answer"]},
    "messages": lambda row: {"messages": [user(row), assistant(row)]},
    "messages in parts": lambda row: {
        "messages": [
            each | {"content": [{"type": "text", "text": each["content"]}]} for each in (user(row), assistant(row))
        ]
    },
    "ShareGPT": lambda row: {
        "conversations": [{"from": "human", "value": row["question"]}, {"from": "gpt", "value": row["answer"]}]
    },
    "prompt, completion as messages": lambda row: {"prompt": [user(row)], "completion": [assistant(row)]},
    # The space before an answer belongs to it, as in TRL.
    "prompt, completion as texts": lambda row: {"prompt": rendered_prompt(row), "completion": f" {row['answer']}"},
    "two columns by name": lambda row: {"q": row["question"], "a": row["answer"]},
}
TEXTS: dict[str, Callable[[Row], Row]] = {
    "text": lambda row: {"text": f"{rendered_prompt(row)} {row['answer']}"},
    "one column by name": lambda row: {"document": f"{rendered_prompt(row)} {row['answer']}"},
}


def with_tools(row: Row) -> Row:
    """A conversation in which the answer comes from a tool. Its argument is called after the second word."""
    key = row["question"].split()[1].lower()
    call = {"role": "assistant", "content": None, "tool_calls": [{"look": {key: 3}}]}
    # Shorter than real ones, to fit into the context of the model.
    return {"messages": [user(row), call, assistant(row)], "tools": [{"look": {key: "integer"}}]}


TOOLS: dict[str, Callable[[Row], Row]] = {
    "messages, tools": with_tools,
    "messages, tools as a text": lambda row: with_tools(row) | {"tools": json.dumps(with_tools(row)["tools"])},
}
NAMED = {
    "two columns by name": ["--prompt_column", "q", "--completion_column", "a"],
    "one column by name": ["--prompt_column", "none", "--completion_column", "document"],
}


def write_lines(rows: list[Row], file: Path) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_gzipped(rows: list[Row], file: Path) -> None:
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_stream(rows: list[Row], file: Path) -> None:
    """An arrow file as `datasets` writes it into its cache."""
    Dataset.from_list(rows).save_to_disk(folder := file.with_suffix(""))
    shutil.move(next(Path(folder).glob("*.arrow")), file)


# How rows of question and answer, or of text, are written, by the end of the file's name.
FILES: dict[str, Callable[[list[Row], Path], Any]] = {
    ".json": lambda rows, file: file.write_text(json.dumps(rows), encoding="utf-8"),
    ".jsonl": write_lines,
    ".jsonl.gz": write_gzipped,
    ".csv": lambda rows, file: Dataset.from_list(rows).to_csv(file),
    ".tsv": lambda rows, file: Dataset.from_list(rows).to_csv(file, sep="\t"),
    ".parquet": lambda rows, file: Dataset.from_list(rows).to_parquet(file),
    ".arrow": write_stream,
    " of save_to_disk": lambda rows, file: Dataset.from_list(rows).save_to_disk(file),
}


def losses(root: Path, forget: Path, options: list[str]) -> Row:
    """The losses of two steps of `r2f unlearn`."""
    folder = root / "run"
    # Each run prints as much as any other. Here only the losses count.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cli.main(
            [
                *("unlearn", "--model_name_or_path", str(root / "model"), "--forget_data", str(forget)),
                *("--retain_data", str(root / "retain.jsonl"), "--output_dir", str(folder), "--overwrite_output_dir"),
                *("--max_steps", "2", "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none"),
                *("--rank", "8", "--use_cpu", *options),
            ]
        )
    state = json.loads((folder / "trainer_state.json").read_text())
    first, second = (log["loss"] for log in state["log_history"] if "loss" in log)
    before = json.loads((folder / "before_results.json").read_text())
    return {"before": before["eval_forget_loss"], "first step": first, "second step": second}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    world = fictitious_dataset(0)
    facts = [{key: row[key] for key in ("question", "answer")} for row in list(world["forget"])[:FACTS]]
    different = 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        tokenizer = build_tokenizer()
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(root / "model")
        build_model().save_pretrained(root / "model")
        retain = [{key: row[key] for key in ("question", "answer")} for row in list(world["retain"])[:FACTS]]
        write_lines(retain, root / "retain.jsonl")
        for group, formats in (("answers", ANSWERS), ("every token", TEXTS), ("answers after calls of tools", TOOLS)):
            table = {}
            for name, convert in formats.items():
                file = root / "forget.jsonl"
                write_lines([convert(row) for row in facts], file)
                table[f"{name} (.jsonl)"] = losses(root, file, NAMED.get(name, []))
            plain = next(iter(formats))
            for kind, write in FILES.items():
                if formats is TOOLS and kind in (".csv", ".tsv"):
                    # They hold no conversations.
                    continue
                file = root / f"{group.replace(' ', '_')}{kind.replace(' ', '_')}"
                write([formats[plain](row) for row in facts], file)
                table[f"{plain} ({kind.strip()})"] = losses(root, file, [])
            first = next(iter(table.values()))
            columns = list(first)
            for row in table.values():
                row["difference"] = max(abs(row[column] - first[column]) for column in columns)
                different += row["difference"] > TOLERANCE
            print_table(f"Losses on {group}, and how much they differ from the first line", table, list(first))
    print(f"{different} runs differ by more than {TOLERANCE:g}.")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
