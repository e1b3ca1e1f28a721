"""The command line: recipes, flags, errors that a user can act on, and whole runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import changed, weights, write_rows
from peft import PeftConfig
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from r2f_hf import R2FConfig, __version__, cli
from r2f_hf.cli.evaluate import EvaluateArguments
from r2f_hf.cli.recipes import parse_recipe
from r2f_hf.cli.unlearn import UnlearnArguments
from r2f_hf.decoders import SpectralDecoder, load_decoder


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults such as `output_dir` are relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail without a traceback, as with a mistake of the user's, and returns the message."""

    def run(*argv: str) -> str:
        with pytest.raises(SystemExit) as error:
            cli.main(argv)
        assert error.value.code == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return message

    return run


# Help


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_do_not_wait_for_torch(flag: str) -> None:
    script = (
        "import sys; from r2f_hf.cli import main\n"
        f"try: main([{flag!r}])\n"
        "except SystemExit as error: assert error.code == 0\n"
        "assert not {'torch', 'transformers', 'datasets'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = (__version__,) if flag == "--version" else cli.COMMANDS
    assert all(text in done.stdout for text in expected)


@pytest.mark.parametrize(("command", "option"), [("unlearn", "--forget_data"), ("evaluate", "--gold_model")])
def test_help_of_a_command_lists_its_options(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"usage: r2f {command}" in printed and option in printed


@pytest.mark.parametrize("argv", [(), ("unlern",)])
def test_without_a_known_command_the_commands_are_listed(argv: tuple[str, ...], fails: Callable[..., str]) -> None:
    message = fails(*argv)
    assert "COMMAND" in message


# Recipes and flags


def test_flags_override_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "forget_data: forget.jsonl\nrank: 4\nlearning_rate: 2.5e-1\noutput_dir: somewhere\nuse_cpu: true\n"
        "target_modules: [q_proj, o_proj]\nview_templates: ['Tell me: {prompt}', 'Say: {prompt}']\n"
    )
    types = (UnlearnArguments, R2FConfig)
    data, config = parse_recipe("unlearn", types, ["--config", str(recipe), "--rank", "8", "--forget_data=mine.csv"])
    assert (data.forget_data, config.rank) == ("mine.csv", 8)
    assert (config.learning_rate, config.output_dir) == (0.25, "somewhere")
    assert config.target_modules == ["q_proj", "o_proj"]
    assert config.view_templates == ["Tell me: {prompt}", "Say: {prompt}"]
    # An option that neither names keeps its default.
    assert config.decoder == "spectral"


def test_an_option_name_that_commands_share_belongs_to_each_of_them(tmp_path: Path) -> None:
    (args,) = parse_recipe("evaluate", (EvaluateArguments,), ["--data", "rows", "--batch_size", "3"])
    assert args == EvaluateArguments(data="rows", batch_size=3)


@pytest.mark.parametrize("argument", ["--config {}", "--config={}"])
def test_an_unknown_key_of_a_recipe_is_answered_with_the_nearest(
    argument: str, fails: Callable[..., str], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("forget_dta: forget.jsonl\n")
    message = fails("unlearn", *argument.format(recipe).split())
    assert f"Unknown key in {recipe}: 'forget_dta'. Did you mean 'forget_data'?" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must contain a YAML mapping"),
        ("- rank", "must contain a YAML mapping"),
        ("rank: [1", "The recipe recipe.yaml is not YAML"),
        ("rank: eight", "argument --rank: invalid int value: 'eight'"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused(text: str, message: str, fails: Callable[..., str]) -> None:
    Path("recipe.yaml").write_text(text)
    assert message in fails("unlearn", "--config", "recipe.yaml")


def test_train_decoder_then_unlearn_with_it(
    saved: Path, tmp_path: Path, forget_rows: list[dict[str, Any]], retain_rows: list[dict[str, Any]]
) -> None:
    # Rows that have no token to learn from are left out.
    empty = [{"question": "", "answer": ""}, {"question": "Where does Bram1 live?" * 20, "answer": "There."}]
    text = write_rows(tmp_path / "text.jsonl", [*retain_rows, *empty * 20])
    folder = tmp_path / "decoder"
    flags = ["--model_name_or_path", str(saved), "--data", text, "--output_dir", str(folder), "--steps", "20"]
    flags += ["--num_batches", "4", "--num_modules", "8", "--ranks", "4", "8", "--batch_sizes", "2"]
    cli.main(["train-decoder", *flags])
    decoder = load_decoder(str(folder))
    assert isinstance(decoder, SpectralDecoder)
    card = (folder / "README.md").read_text()
    assert "on gradients of model: 4 batches, 8 modules, probes of rank 4, 8, seed 0" in card and "| 8 |" in card

    data = {
        "forget": write_rows(tmp_path / "forget.jsonl", forget_rows),
        "retain": write_rows(tmp_path / "retain.jsonl", retain_rows),
    }
    flags = [part for name, file in data.items() for part in (f"--{name}_data", file)]
    flags += ["--model_name_or_path", str(saved), "--output_dir", "out", "--use_cpu", "--max_steps", "1"]
    cli.main(["unlearn", *flags, "--decoder", str(folder), "--rank", "8", "--report_to", "none"])
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "No text is named. Set `data` to a file of rows"),
        (("--data", "text.jsonl", "--ranks", "0"), "`ranks` must be positive numbers"),
        (("--data", "text.jsonl", "--num_batches", "3"), "`num_batches` must be at least 4, so that one validates"),
        (("--data", "text.jsonl", "--prompt_column", "prompt"), "'prompt'"),
        (("--data", "text.jsonl", "--max_length", "2"), "No row of text.jsonl has a token to take the loss on"),
    ],
)
def test_mistakes_of_train_decoder_are_told_in_a_line(
    flags: tuple[str, ...], message: str, saved: Path, retain_rows: list[dict[str, Any]], fails: Callable[..., str]
) -> None:
    write_rows(Path("text.jsonl"), retain_rows)
    assert message in fails("train-decoder", "--model_name_or_path", str(saved), *flags)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("unlearn", "--config"), "`--config` needs a recipe after it"),
        (("unlearn", "--lerning_rate", "0.5"), "Unknown option: 'lerning_rate'. Did you mean 'learning_rate'?"),
        (("unlearn", "--holdout_data=x.jsonl", "--forgot_data=f.jsonl"), "Did you mean 'forget_data'?"),
        (("evaluate", "--gold-model", "model", "--forget_spilt", "forget05"), "Did you mean 'forget_split'?"),
        (("unlearn", "--config", "nowhere.yaml"), "There is no recipe nowhere.yaml."),
        (("unlearn", "--forget_data", "nowhere.jsonl"), "There is no data file nowhere.jsonl."),
        (("unlearn", "--forget_objective", "npoo"), "invalid choice: 'npoo' (choose from"),
        (("unlearn",), "No model is named."),
        (("unlearn", "--model_name_or_path", "./nowhere"), "There is no model folder ./nowhere."),
        (("evaluate", "--data", ".", "--forget_split", "forget01"), "The tofu suite needs forget01_perturbed.json"),
        (("evaluate", "--suite", "tofuu", "--data", "."), "Unknown suite: 'tofuu'. Did you mean 'tofu'?"),
        (("unlearn", "--use_peft", "true", "--lora_r", "8"), "'use_peft': R2F brings its own adapter"),
        (("unlearn", "--load_in_4bit", "true"), "A quantised model cannot take the updates"),
    ],
)
def test_mistakes_are_told_in_a_line(argv: tuple[str, ...], message: str, fails: Callable[..., str]) -> None:
    assert message in fails(*argv)


# Whole runs


def test_unlearn_then_evaluate(
    saved: Path,
    memorised: PreTrainedModel,
    forget_rows: list[dict[str, Any]],
    retain_rows: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    unlearned, report = tmp_path / "unlearned", tmp_path / "evaluation" / "report.json"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: {saved}\noutput_dir: {unlearned}\nmax_steps: 4\nlearning_rate: 0.5\nrank: 8\n"
        "per_device_train_batch_size: 3\nsave_strategy: 'no'\nreport_to: none\nuse_cpu: true\ndisable_tqdm: true\n"
        f"forget_data: {write_rows(tmp_path / 'forget.jsonl', forget_rows)}\n"
        f"retain_data: {write_rows(tmp_path / 'retain.jsonl', retain_rows)}\n"
    )
    cli.main(["unlearn", "--config", str(recipe), "--max_steps", "6"])
    printed = capsys.readouterr().out
    assert (
        f"The model is in {unlearned}. `r2f report {unlearned}`" in printed
        and "6 steps; all steps were taken." in printed
    )

    # The result is the plain model, changed.
    model = AutoModelForCausalLM.from_pretrained(unlearned)
    assert type(model) is type(memorised) and not (unlearned / "adapter_config.json").exists()
    with safe_open(unlearned / "model.safetensors", "pt") as file:
        assert not [key for key in file.keys() if "lora" in key or "base" in key]  # noqa: SIM118
    moved = changed(weights(memorised), weights(model))
    assert moved == {name for name in weights(model) if name.endswith("_proj.weight")}
    results = {
        name: json.loads((unlearned / f"{name}_results.json").read_text()) for name in ("before", "after", "train")
    }
    assert results["after"]["eval_forget_probability"] < 0.5 * results["before"]["eval_forget_probability"]
    assert results["train"]["steps"] == 6 and 0 < results["train"]["fidelity"] <= 1

    # Evaluate it. The model from before serves as gold.
    for name, rows in (("forget01_perturbed", forget_rows), ("retain_perturbed", retain_rows)):
        wrong = [row | {"perturbed_answer": ["The island.", "The forest."]} for row in rows]
        write_rows(tmp_path / "suite" / f"{name}.json", wrong)
    arguments = ["--data", str(tmp_path / "suite"), "--max_new_tokens", "6", "--dtype", "float32"]
    cli.main(["evaluate", "--model_name_or_path", str(unlearned), "--gold_model", str(saved), *arguments])
    content = json.loads(report.read_text())
    assert content["model"] == str(unlearned) and content["gold_model"] == str(saved)
    assert content["rows"] == {"forget": 6, "retain": 10}
    assert content["metrics"]["forget_probability"] == pytest.approx(
        results["after"]["eval_forget_probability"], rel=1e-3
    )
    assert content["metrics"]["retain_probability"] == pytest.approx(
        results["after"]["eval_retain_probability"], rel=1e-3
    )
    assert 0 <= content["metrics"]["forget_quality"] < 1
    assert "model utility" in capsys.readouterr().out.replace("_", " ")

    # A model cannot be told from itself.
    cli.main(["evaluate", "--model_name_or_path", str(unlearned), "--gold_model", str(unlearned), *arguments])
    again = json.loads(report.read_text())["metrics"]
    assert again == content["metrics"] | {"forget_quality": 1.0}
    assert AutoTokenizer.from_pretrained(unlearned)("Orla1")["input_ids"]


def test_a_quantised_model_forgets_into_an_adapter_and_the_command_can_be_repeated(
    saved: Path,
    forget_rows: list[dict[str, Any]],
    retain_rows: list[dict[str, Any]],
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    pytest.importorskip("bitsandbytes")
    out = tmp_path / "adapter"
    arguments = [
        *("unlearn", "--model_name_or_path", str(saved), "--output_dir", str(out), "--load_in_8bit", "--use_cpu"),
        *("--forget_data", write_rows(tmp_path / "forget.jsonl", forget_rows), "--report_to", "none"),
        *("--retain_data", write_rows(tmp_path / "retain.jsonl", retain_rows), "--rank", "8", "--max_steps", "3"),
        *("--learning_rate", "0.13", "--save_steps", "1", "--resume_from_checkpoint", "true"),
    ]
    assert "A quantised model cannot take the updates" in fails(*arguments)
    for _ in range(2):
        cli.main([*arguments, "--update_target", "adapter"])
        results = {name: json.loads((out / f"{name}_results.json").read_text()) for name in ("before", "after")}
        assert len((out / "ledger.jsonl").read_text().splitlines()) == 1
    assert results["after"]["eval_forget_probability"] < results["before"]["eval_forget_probability"]
    assert PeftConfig.from_pretrained(out).base_model_name_or_path == str(saved)
    assert not list(out.glob("model*.safetensors"))
    # Another run does not overwrite it.
    assert "holds another run" in fails(*arguments[:-2], "--update_target", "adapter", "--seed", "1")


def test_mistakes_in_the_data_are_told_in_a_line(
    saved: Path, forget_rows: list[dict[str, Any]], tmp_path: Path, fails: Callable[..., str]
) -> None:
    forget = write_rows(tmp_path / "forget.jsonl", forget_rows)
    arguments = [
        "unlearn",
        "--model_name_or_path",
        str(saved),
        "--use_cpu",
        "--forget_data",
        forget,
        "--report_to",
        "none",
    ]
    message = fails(*arguments, "--retain_data", forget)
    assert "share 6 rows: forget[0] = retain[0]" in message and "Orla" not in message
    assert "The retain set is empty" in fails(*arguments)
    assert "The forget set is empty" in fails(*arguments[:4], "--retain_data", forget)
    assert "The forget set has the columns 'question', 'answer', 'paraphrased_question', and not 'prompt'" in fails(
        *arguments, "--prompt_column", "prompt"
    )
