"""
Run a folder of cases: scripts of a user's input, each of which exits with 0 where the behaviour is right.

    python benchmarks/cases.py DIR [--only a01 b22]

It prints a line per case, and at the end how many were right. What a case of another verdict printed follows its line.
A case may use names of an earlier version of the package: `MOVED` has today's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path


MOVED = {
    "from r2f_hf.evaluation.scoring import": "from r2f_hf.scoring import",
    "from r2f_hf.data.rows import load_rows": "from r2f_hf.data.loading import load_rows",
    '.train_examples["forget"]': ".splits.forget",
}
SECONDS = 600


def run_case(file: Path, folder: Path) -> tuple[int | None, str]:
    """The exit code of a case, or None if it did not end in time, and what it printed."""
    text = file.read_text(encoding="utf-8")
    for former, today in MOVED.items():
        text = text.replace(former, today)
    script = folder / file.name
    script.write_text(text, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(file.parent.resolve()), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    try:
        result = subprocess.run(
            [sys.executable, str(script)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        return None, str(error.stdout)
    return result.returncode, result.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=[""], help="run the cases whose names begin so")
    options = parser.parse_args()
    files = [
        file for file in sorted(options.folder.glob("[ab][0-9]*.py")) if file.name.startswith(tuple(options.only))
    ]
    if not files:
        raise SystemExit(f"{options.folder} has no case of that name.")
    right = 0
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            code, output = run_case(file, Path(folder))
        verdict = {0: "right", None: f"no end within {SECONDS} s"}.get(code, f"wrong (exit code {code})")
        print(f"{verdict}  {file.stem}", flush=True)
        if code != 0:
            print(output)
        right += code == 0
    print(f"{right} of {len(files)} right")
    sys.exit(right < len(files))


if __name__ == "__main__":
    main()
