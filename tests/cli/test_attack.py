"""`r2f attack`: the report, what is left out, and what is refused before anything is attacked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli.test_launch import launch
from conftest import CONFIGS, SHAPE, build_model, write_rows
from transformers import LlamaConfig, PreTrainedTokenizerFast

from r2f_hf import cli


@pytest.fixture
def options(
    saved: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, forget_rows: list[Any], retain_rows: list[Any]
) -> dict[str, str]:
    gold = tmp_path / "gold"
    build_model(seed=1).save_pretrained(gold)
    tokenizer.save_pretrained(gold)
    return {
        "model_name_or_path": str(saved),
        "original_model": str(saved),
        "gold_model": str(gold),
        "forget_data": write_rows(tmp_path / "rows" / "forget.jsonl", forget_rows),
        "retain_data": write_rows(tmp_path / "rows" / "retain.jsonl", retain_rows),
        "output_dir": str(tmp_path / "attacks"),
        "max_new_tokens": "8",
    }


@pytest.fixture
def qwen(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model of another architecture with the same tokenizer."""
    build_model(CONFIGS["qwen"]).save_pretrained(tmp_path / "qwen")
    tokenizer.save_pretrained(tmp_path / "qwen")
    return tmp_path / "qwen"


def flags(options: dict[str, str], **others: str | None) -> list[str]:
    given = {name: value for name, value in (options | others).items() if value is not None}
    return ["attack", *(f"--{name}={value}" for name, value in given.items())]


def test_all_attacks_and_their_report(
    options: dict[str, str], capsys: pytest.CaptureFixture[str], forget_rows: list[Any]
) -> None:
    cli.main(flags(options))
    report = json.loads((Path(options["output_dir"]) / "report.json").read_text())
    assert report["schema"] == "r2f-attack/1" and report["left_out"] == {}
    assert report["rows"] == {"forget": 6, "retain": 10}
    assert len(report["attacks"]) == 8
    for name, attack in report["attacks"].items():
        assert attack["meaning"].endswith(".")
        if name == "reversed_guidance":
            # Its attacker holds the original anyway.
            assert not any("comeback" in line for line in attack["results"].values())
            continue
        # The model is its own original: nothing was forgotten.
        line = attack["results"]["no attack"]
        assert line["unlearned"] == line["original"] > line["gold"] and line["comeback"] == 1
    output = capsys.readouterr().out
    written = output + "".join(file.read_text() for file in Path(options["output_dir"]).rglob("*.json"))
    assert not any(row["answer"] in written for row in forget_rows)
    assert "The highest comeback is" in output and "Without the attack it is 1.00." in output


def test_without_gold_and_original_some_are_left_out(
    options: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main([*flags(options, gold_model=None, original_model=None), "--attacks", "all"])
    report = json.loads((Path(options["output_dir"]) / "report.json").read_text())
    assert report["left_out"].keys() == {"reversed_guidance", "merging"}
    assert report["attacks"]["pruning"]["results"]["no attack"].keys() == {"unlearned"}
    assert "Without `gold_model` compare each line with `no attack`" in capsys.readouterr().out


def test_all_with_a_further_name_leaves_out_too(options: dict[str, str]) -> None:
    cli.main(flags(options, gold_model=None, original_model=None, attacks="all,pruning"))
    report = json.loads((Path(options["output_dir"]) / "report.json").read_text())
    assert report["left_out"].keys() == {"reversed_guidance", "merging"}


def test_prompts_and_completions_are_sampled_as_they_stand(
    options: dict[str, str], tmp_path: Path, forget_rows: list[Any]
) -> None:
    asked = {"attacks": "sampling", "gold_model": None, "original_model": None}
    cli.main(flags(options, **asked))
    expected = json.loads((Path(options["output_dir"]) / "report.json").read_text())
    rows = [
        {"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"} for row in forget_rows
    ]
    asked["forget_data"] = write_rows(tmp_path / "rows" / "completions.jsonl", rows)
    asked["retain_data"] = None
    cli.main(flags(options, **asked))
    found = json.loads((Path(options["output_dir"]) / "report.json").read_text())
    greedy = [each["attacks"]["sampling"]["results"]["no attack"]["unlearned"] for each in (expected, found)]
    assert greedy[0] == greedy[1] > 0.5
    asked["attacks"] = "all"
    cli.main(flags(options, **asked))
    found = json.loads((Path(options["output_dir"]) / "report.json").read_text())
    assert "stand as they are" in found["left_out"]["format_shift"] and "sampling" not in found["left_out"]
    assert any("6 forget rows" in note for note in found["notes"])


def test_an_attack_that_does_not_fit_gold_is_left_out(options: dict[str, str], qwen: Path) -> None:
    cli.main(flags(options, gold_model=str(qwen), attacks="all"))
    report = json.loads((Path(options["output_dir"]) / "report.json").read_text())
    assert report["left_out"] == {
        "merging": "on the gold model: the original model has weights of other names or shapes"
    }
    assert "gold" in report["attacks"]["pruning"]["results"]["no attack"]


def test_a_gold_model_that_reads_less_is_named(
    options: dict[str, str], tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    build_model(LlamaConfig(**SHAPE | {"max_position_embeddings": 4})).save_pretrained(options["gold_model"])
    with pytest.raises(SystemExit):
        cli.main(flags(options, attacks="pruning"))
    assert "The gold model does not take the forget rows: forget[0] has" in capsys.readouterr().err


def test_retain_rows_that_are_to_be_forgotten_are_refused(
    options: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(flags(options, retain_data=options["forget_data"]))
    assert "The forget and retain sets share 6 rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"attacks": "relern"}, "Unknown attack: 'relern'. Did you mean 'relearning'?"),
        (
            {"attacks": "merging", "original_model": None},
            "The attack 'merging' cannot be made: it needs the model from before",
        ),
        ({"forget_data": None}, "Set `forget_data`"),
        ({"batch_size": "0"}, "`batch_size` must be at least 1, got 0."),
        ({"forget_data": "nowhere.jsonl"}, "There is no data file nowhere.jsonl"),
    ],
)
def test_mistakes_are_refused(
    options: dict[str, str], others: dict[str, str | None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(flags(options, **others))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path(options["output_dir"]).exists()


def test_gold_with_another_tokenizer_is_refused(
    options: dict[str, str], tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    import copy

    other = copy.deepcopy(tokenizer)
    other.add_tokens(["another"])
    other.save_pretrained(options["gold_model"])
    with pytest.raises(SystemExit):
        cli.main(flags(options))
    assert "has another tokenizer than the unlearned one" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp.yaml", "fsdp2.yaml"])
def test_two_processes_get_what_one_does(config: str, options: dict[str, str], tmp_path: Path) -> None:
    cli.main(flags(options))
    one = json.loads((Path(options["output_dir"]) / "report.json").read_text())
    folder = tmp_path / "two"
    done = launch(config, *flags(options, output_dir=str(folder)))
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((folder / "report.json").read_text())
    assert two["left_out"] == one["left_out"] == {} and two["attacks"].keys() == one["attacks"].keys()
    for name, attack in one["attacks"].items():
        for variant, line in attack["results"].items():
            assert two["attacks"][name]["results"][variant] == pytest.approx(line, rel=1e-4, abs=1e-6), (name, variant)
