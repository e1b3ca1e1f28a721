"""Two nodes, each with an `accelerate launch` and a disk of its own, make of the quickstart what one process does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import changed, distance, process_environment, weights
from transformers import AutoModelForCausalLM


RECIPES = Path(__file__).parents[2] / "recipes"


def free_port() -> str:
    """A port that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def launch(
    config: str, nodes: int, processes: int, quickstart: Path, folder: Path, *flags: str
) -> list[tuple[int, str]]:
    """Run the command of each node, as in `docs/distributed.md`: the exit status and the output of each."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(RECIPES / "accelerate_configs" / config), "--num_processes", str(processes)]
    command += ["--num_machines", str(nodes), "--main_process_ip", "127.0.0.1"]
    command += ["--main_process_port", free_port(), "--machine_rank"]
    unlearn = ["-m", "r2f_hf.cli", "unlearn", "--config", str(RECIPES / "quickstart" / "unlearn.yaml"), "--use_cpu"]
    unlearn += ["--model_name_or_path", str(quickstart / "before"), "--disable_tqdm", "true", *flags]
    unlearn += [f"--{name}_data={quickstart / 'data' / name}.jsonl" for name in ("forget", "retain")]
    # The recipe's 8 rows per step, whatever the number of processes. The output folder is the same path on each disk.
    unlearn += ["--per_device_train_batch_size", str(8 // processes), "--output_dir", "unlearned"]
    started = []
    try:
        for rank in range(nodes):
            disk = folder / f"node{rank}"
            disk.mkdir(parents=True, exist_ok=True)
            started.append(
                subprocess.Popen(
                    [*command, str(rank), *unlearn],
                    cwd=disk,
                    env=process_environment(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
            )
        with ThreadPoolExecutor(nodes) as pool:
            outputs = list(pool.map(lambda node: node.communicate(timeout=900)[0], started))
    finally:
        for node in started:
            # Its processes too. They are in its group.
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
    return [(node.returncode, output) for node, output in zip(started, outputs, strict=True)]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the quickstart's data and models."""
    folder = tmp_path_factory.mktemp("quickstart")
    code = "import sys; from pathlib import Path; from prepare import prepare; prepare(Path(sys.argv[1]), 0, 4)"
    environment = process_environment()
    environment["PYTHONPATH"] += f":{RECIPES / 'quickstart'}"
    subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, check=True, timeout=900)
    return folder


@pytest.mark.slow
def test_two_nodes_make_of_the_quickstart_what_one_process_does(quickstart: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    checkpoints = ("--save_strategy", "steps", "--save_steps", "10")
    runs = launch("cpu.yaml", 1, 1, quickstart, alone)
    runs += launch("ddp.yaml", 2, 4, quickstart, together, *checkpoints)
    for status, output in runs:
        assert status == 0, output[-3000:]

    results = (alone / "node0" / "unlearned", together / "node0" / "unlearned")
    before, one, four = (
        weights(AutoModelForCausalLM.from_pretrained(folder)) for folder in (quickstart / "before", *results)
    )
    assert len(changed(before, one)) == 28
    assert distance(one, four) < 1e-4 * distance(before, one)
    expected, found = (json.loads((folder / "after_results.json").read_text()) for folder in results)
    assert expected["eval_forget_probability"] < 0.01 < 0.9 < expected["eval_retain_probability"]
    # Losses are means over batches, which have other rows.
    for name in ("forget_probability", "retain_probability"):
        assert found[f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"], rel=1e-4), name
    # Only the first node writes the result.
    assert not list((together / "node1").rglob("*.safetensors"))

    # The second node has no whole checkpoint, so both refuse to go on.
    for status, output in launch(
        "ddp.yaml", 2, 4, quickstart, together, *checkpoints, "--resume_from_checkpoint", "true"
    ):
        assert status != 0
        assert "Only some nodes have the checkpoint" in output
