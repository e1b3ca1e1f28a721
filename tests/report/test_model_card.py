"""The model card, and what is pushed to the Hub next to it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import BuildTrainer, write_rows
from huggingface_hub import ModelCard
from peft import PeftConfig
from report.conftest import unlearn
from report.page import check_page
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from r2f_hf.report.model_card import on_hub
from r2f_hf.runs.upload import IGNORE_PATTERNS, check_upload, uploaded


def pushed(folder: Path) -> set[str]:
    """What Trainer would upload, by huggingface_hub's own filter."""
    # The patterns are Trainer's, which does not name them.
    assert 'ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*"]' in inspect.getsource(Trainer.push_to_hub)
    assert ["_*", f"{PREFIX_CHECKPOINT_DIR}-*"] == IGNORE_PATTERNS
    return {path.relative_to(folder).as_posix() for path in uploaded(folder)}


def test_every_save_has_a_card(world: Path, tmp_path: Path, forget_rows: list[dict[str, Any]]) -> None:
    card = "---\nlicense: other\nlicense_name: my-own\nlicense_link: LICENSE\nbase_model: me/base\n---\n# Mine\n"
    (world / "before" / "README.md").write_text(card)
    output = unlearn(world, tmp_path / "unlearned", "--max_steps=1")
    found = ModelCard.load(output / "README.md")
    assert (found.data.license, found.data.license_name, found.data.base_model) == ("other", "my-own", "me/base")
    assert found.data.library_name == "transformers" and "unlearning" in found.data.tags
    (results,) = [[each.metric_type, each.metric_value] for each in found.data.eval_results][:1]
    after = json.loads((output / "after_results.json").read_text())
    assert results == ["forget_probability", after["eval_forget_probability"]]
    entry = json.loads((output / "ledger.jsonl").read_text())
    for text in (entry["digest"], entry["weights"]["after"], *entry["request"]["rows"], "What was not measured"):
        assert text in found.text
    assert "| forget | 6 | not public |" in found.text and str(world) not in str(found)
    assert not any(row["answer"] in str(found) or row["question"] in str(found) for row in forget_rows)
    # Tables are whole: no line within them is empty.
    assert "| retain | 10 | not public |\n" in found.text
    (world / "before" / "README.md").unlink()


def test_figures_of_evaluate_come_into_the_card_when_it_is_pushed(
    build_trainer: BuildTrainer, memorised_model: PreTrainedModel, tmp_path: Path
) -> None:
    trainer = build_trainer(memorised_model)
    trainer.unlearn()
    output = tmp_path / "output"
    entry = json.loads((output / "ledger.jsonl").read_text())
    report = {
        "schema": "r2f-evaluate/1",
        "weights": entry["weights"]["after"],
        "suite": "own",
        "forget_split": None,
        "gold_model": "secret/path/gold",
        "original_model": "secret/path/before",
        "rows": {},
        "metrics": {"forget_probability": 0.125},
        "compared": {"gold": {"forget_probability": 0.0625}},
        "notes": [],
        "left_out": {},
    }
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "report.json").write_text(json.dumps(report))
    trainer.create_model_card(model_name="forgetful", license="mit", tags="mine", language="en")
    card = ModelCard.load(output / "README.md")
    assert (card.data.license, card.data.language, card.data.model_name) == ("mit", "en", "forgetful")
    assert {"mine", "unlearning"} <= set(card.data.tags)
    assert [(each.metric_type, each.metric_value) for each in card.data.eval_results] == [
        ("forget_probability", 0.125)
    ]
    assert "| P(answer) |  | 0.125 | 0.0625 |" in card.text
    html = (output / "report.html").read_text(encoding="utf-8")
    assert check_page(html).numbers["forget_probability", "gold"] == 0.0625
    assert "secret" not in html and str(tmp_path) not in html


def test_what_is_pushed(
    build_trainer: BuildTrainer, memorised_model: PreTrainedModel, tmp_path: Path, forget_rows: list[dict[str, Any]]
) -> None:
    trainer = build_trainer(memorised_model, save_strategy="steps", save_steps=1)
    trainer.unlearn()
    trainer.create_model_card()
    output = tmp_path / "output"
    # They are there, and stay here.
    assert list(output.glob("_undo/*.safetensors")) and list(output.glob("checkpoint-2/r2f_references.safetensors"))
    assert (output / "_r2f.lock").is_file() and (output / "_r2f_details.json").is_file()
    names = pushed(output)
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "ledger.jsonl", "report.html"} <= names
    assert not [name for name in names if name.startswith(("_", ".", "checkpoint"))]
    for name in names:
        content = (output / name).read_bytes()
        assert not any(str(row[key]).encode() in content for row in forget_rows for key in ("question", "answer"))


@pytest.mark.parametrize("name", ["forget.jsonl", "data/rows.csv", "rows.parquet"])
def test_a_folder_with_forget_rows_is_not_pushed(
    name: str,
    build_trainer: BuildTrainer,
    memorised_model: PreTrainedModel,
    tmp_path: Path,
    forget_rows: list[dict[str, Any]],
) -> None:
    trainer = build_trainer(memorised_model)
    trainer.unlearn()
    arguments = (trainer.args, trainer.state, trainer.control)
    trainer.callback_handler.on_push_begin(*arguments)
    file = tmp_path / "output" / name
    file.parent.mkdir(exist_ok=True)
    write_rows(file, forget_rows[2:])
    with pytest.raises(ValueError, match=r"would be pushed to the Hub, and (row 2 of the forget set|may hold rows)"):
        trainer.callback_handler.on_push_begin(*arguments)


def test_rows_are_found_however_json_writes_them(tmp_path: Path) -> None:
    row = ['Wo wohnt "Ørla"?', "Im Süden, am\nHafen."]
    for number, content in enumerate((json.dumps(row), json.dumps(row, ensure_ascii=False), "\n".join(row))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "log.txt").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match="row 1 of the forget set stands in it"):
            check_upload(folder, [["another question", "another answer"], row])
        # A short part of a row is no row, and short texts stand in files by chance.
        check_upload(folder, [[row[0], "something else"], ["Wo", "Im"]])
        # A long one is enough.
        (folder / "README.md").write_text("Wo wohnt die Frau, die am Hafen wohnt?")
        with pytest.raises(ValueError, match="row 0 of the forget set stands in it"):
            check_upload(folder, [["Wo wohnt die Frau, die am Hafen wohnt?", "Am Hafen."]])


def test_an_adapter_has_a_card_of_its_own(
    build_trainer: BuildTrainer, memorised_model: PreTrainedModel, tmp_path: Path
) -> None:
    build_trainer(memorised_model, update_target="adapter").unlearn()
    card = ModelCard.load(tmp_path / "output" / "README.md")
    assert card.data.library_name == "peft" and "This adapter makes its base model forget 6 rows" in card.text
    assert PeftConfig.from_pretrained(tmp_path / "output").peft_type


def test_a_readme_that_is_no_card_is_left_alone(
    build_trainer: BuildTrainer, memorised_model: PreTrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "README.md").write_text("# My experiments\n")
    build_trainer(memorised_model).unlearn()
    assert (tmp_path / "output" / "README.md").read_text() == "# My experiments\n"
    assert "is no model card, and is left as it is" in caplog.text
    AutoModelForCausalLM.from_pretrained(tmp_path / "output")


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("locuslab/TOFU:forget01:train", True),
        ("me/rows", True),
        ("data/jane_doe.jsonl", False),
        ("rows.csv", False),
        ("/home/me/rows", False),
        ("../rows/jane", False),
    ],
)
def test_only_names_on_the_hub_are_named(source: str, public: bool) -> None:
    assert on_hub(source) == (source if public else None)
