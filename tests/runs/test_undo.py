"""What a run changed can be restored bit for bit, and is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BuildTrainer, build_model, changed, rows, weights
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback

from r2f_hf import cli
from r2f_hf.runs.ledger import first_break, read_ledger
from r2f_hf.runs.undo import prepare_undo
from r2f_hf.runs.weights import weights_hash


@pytest.fixture
def unlearn(build_trainer: BuildTrainer) -> Callable[..., None]:
    """A request: a model (or its folder) in, a folder out."""

    def run(model: PreTrainedModel | Path, out: Path, **settings: Any) -> None:
        if isinstance(model, Path):
            model = AutoModelForCausalLM.from_pretrained(model)
        trainer = build_trainer(model, output_dir=str(out), **settings)
        trainer.evaluate()
        trainer.train()
        trainer.evaluate()
        trainer.save_model()

    return run


def load(folder: Path) -> dict[str, torch.Tensor]:
    return weights(AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_run_is_undone_bit_for_bit(
    kind: str, dtype: torch.dtype, tmp_path: Path, unlearn: Callable[..., None]
) -> None:
    model = build_model(kind, dtype)
    before = weights(model)
    unlearn(model, tmp_path / "out")
    assert changed(before, load(tmp_path / "out"))
    (entry,) = read_ledger(tmp_path / "out")
    assert entry["weights"] == {"before": weights_hash(before), "after": weights_hash(load(tmp_path / "out"))}
    assert first_break([entry], weights_hash(load(tmp_path / "out"))) is None
    kept = tmp_path / "out" / "_undo" / entry["undo"]["file"]
    assert kept.stat().st_size == entry["undo"]["bytes"]

    prepare_undo(tmp_path / "out").write()
    restored = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert restored.dtype == dtype
    assert not changed(before, weights(restored))
    assert not kept.exists()
    entries = read_ledger(tmp_path / "out")
    assert [entry["kind"] for entry in entries] == ["unlearn", "undo"]
    assert first_break(entries, weights_hash(before)) is None
    with pytest.raises(ValueError, match="Nothing is left to undo"):
        prepare_undo(tmp_path / "out")


def test_an_entry_says_what_was_asked_and_measured(
    tmp_path: Path, model: PreTrainedModel, unlearn: Callable[..., None]
) -> None:
    unlearn(model, tmp_path / "out", seed=7)
    (entry,) = read_ledger(tmp_path / "out")
    assert len(entry["request"]["rows"]) == 6
    assert entry["recipe"]["seed"] == 7 and entry["recipe"]["max_steps"] == 2 and "data" not in entry["recipe"]
    metrics = entry["metrics"]
    assert metrics["steps"] == 2 and metrics["fidelity"] > 0
    assert metrics["before"]["eval_forget_probability"] != metrics["after"]["eval_forget_probability"]


def test_requests_follow_each_other_in_other_folders(
    tmp_path: Path, model: PreTrainedModel, unlearn: Callable[..., None]
) -> None:
    unlearn(model, tmp_path / "one")
    unlearn(tmp_path / "one", tmp_path / "two", seed=1)
    entries = read_ledger(tmp_path / "two")
    assert entries[:1] == read_ledger(tmp_path / "one")
    assert len(entries) == 2 and first_break(entries, weights_hash(load(tmp_path / "two"))) is None
    prepare_undo(tmp_path / "two").write()
    assert not changed(load(tmp_path / "one"), load(tmp_path / "two"))
    # What the first request changed was kept where it was made.
    with pytest.raises(FileNotFoundError, match=r"from before entry 1 are not in .*wrote to another folder"):
        prepare_undo(tmp_path / "two")
    prepare_undo(tmp_path / "one").write()
    assert not changed(weights(build_model()), load(tmp_path / "one"))


def test_requests_in_one_folder_are_undone_one_by_one(
    tmp_path: Path, model: PreTrainedModel, unlearn: Callable[..., None]
) -> None:
    folder = tmp_path / "model"
    states = [weights(model)]
    model.save_pretrained(folder)
    for seed in (0, 1):
        unlearn(folder, folder, seed=seed, overwrite_output_dir=True)
        states.append(load(folder))
    for state in (states[1], states[0]):
        prepare_undo(folder).write()
        assert not changed(state, load(folder))
    assert [entry["kind"] for entry in read_ledger(folder)] == ["unlearn", "unlearn", "undo", "undo"]


def test_one_trainer_may_run_twice(tmp_path: Path, model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    trainer = build_trainer(model, save_strategy="steps", save_steps=1)
    trainer.train()
    between = weights(model)
    trainer.train()
    # Resuming in the same trainer adds no entry.
    trainer.train(resume_from_checkpoint=True)
    for _ in range(2):
        trainer.save_model()
    entries = read_ledger(tmp_path / "output")
    assert len(entries) == 2 and first_break(entries, weights_hash(load(tmp_path / "output"))) is None
    prepare_undo(tmp_path / "output").write()
    assert not changed(between, load(tmp_path / "output"))


def test_a_run_that_is_saved_again_is_one_entry(
    tmp_path: Path, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    # The model lies in the output folder, so the ledger that a run begins with is also the one that it writes.
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    settings = {"output_dir": str(folder), "save_strategy": "steps", "save_steps": 1}
    for resume in (False, True, True):
        trainer = build_trainer(AutoModelForCausalLM.from_pretrained(folder), **settings)
        trainer.evaluate()
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
        entries = read_ledger(folder)
        assert len(entries) == 1 and first_break(entries, weights_hash(load(folder))) is None
        # The metrics from before are not those of the model that a later run found there, which had forgotten already.
        known = entries[0]["metrics"]["before"]["eval_forget_probability"]
        assert known == pytest.approx(build_trainer(build_model()).evaluate()["eval_forget_probability"])
    prepare_undo(folder).write()
    assert not changed(weights(build_model()), load(folder))


def test_a_run_after_an_undone_one_follows_it(
    tmp_path: Path, model: PreTrainedModel, unlearn: Callable[..., None]
) -> None:
    unlearn(model, tmp_path / "out")
    prepare_undo(tmp_path / "out").write()
    unlearn(build_model(), tmp_path / "out")
    entries = read_ledger(tmp_path / "out")
    assert [entry["kind"] for entry in entries] == ["unlearn", "undo", "unlearn"]
    assert first_break(entries, weights_hash(load(tmp_path / "out"))) is None


def test_weights_of_an_interrupted_run_are_accounted_for(
    tmp_path: Path, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    trainer = build_trainer(model, data={"callbacks": [Interrupt()]})
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.save_model()
    (entry,) = read_ledger(tmp_path / "output")
    assert entry["metrics"]["steps"] == 1
    assert first_break([entry], weights_hash(load(tmp_path / "output"))) is None


def test_undo_waits_for_no_run_and_no_run_for_it(
    tmp_path: Path, model: PreTrainedModel, build_trainer: BuildTrainer, unlearn: Callable[..., None]
) -> None:
    unlearn(model, tmp_path / "output")
    undo = prepare_undo(tmp_path / "output")
    with pytest.raises(ValueError, match="Another run is writing"):
        build_trainer(build_model()).train()
    undo.write()
    trainer = build_trainer(build_model())
    with trainer.locked(), pytest.raises(ValueError, match="Another run is writing"):
        prepare_undo(tmp_path / "output")


def test_a_resumed_run_is_one_entry_and_can_be_undone(
    tmp_path: Path, model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1}
    before = weights(model)
    build_trainer(model, max_steps=1, **settings).train()
    trainer = build_trainer(build_model(), max_steps=3, **settings)
    trainer.train(resume_from_checkpoint=True)
    trainer.save_model()
    (entry,) = read_ledger(tmp_path / "output")
    assert entry["weights"]["before"] == weights_hash(before) and entry["metrics"]["steps"] == 3
    prepare_undo(tmp_path / "output").write()
    assert not changed(before, load(tmp_path / "output"))


def test_the_original_is_not_kept_where_it_must_not_be(
    tmp_path: Path, model: PreTrainedModel, unlearn: Callable[..., None]
) -> None:
    unlearn(model, tmp_path / "out", keep_original=False)
    assert not (tmp_path / "out" / "_undo").exists()
    assert read_ledger(tmp_path / "out")[0]["undo"] is None
    with pytest.raises(FileNotFoundError, match="told not to keep them"):
        prepare_undo(tmp_path / "out")


def test_an_interrupted_undo_is_finished(tmp_path: Path, model: PreTrainedModel, unlearn: Callable[..., None]) -> None:
    before = weights(model)
    unlearn(model, tmp_path / "out")
    ledger = (tmp_path / "out" / "ledger.jsonl").read_bytes()
    prepare_undo(tmp_path / "out").write()
    # As if it had ended between the weights and the ledger.
    (tmp_path / "out" / "ledger.jsonl").write_bytes(ledger)
    prepare_undo(tmp_path / "out").write()
    assert [entry["kind"] for entry in read_ledger(tmp_path / "out")] == ["unlearn", "undo"]
    assert not changed(before, load(tmp_path / "out"))


@pytest.mark.parametrize("damage", ["flipped", "cut", "another"])
def test_a_damaged_original_is_refused_and_nothing_written(
    damage: str, tmp_path: Path, model: PreTrainedModel, unlearn: Callable[..., None]
) -> None:
    unlearn(model, tmp_path / "out")
    after = load(tmp_path / "out")
    (file,) = (tmp_path / "out" / "_undo").iterdir()
    content = file.read_bytes()
    if damage == "another":
        unlearn(build_model("gpt2"), tmp_path / "other")
        (other,) = (tmp_path / "other" / "_undo").iterdir()
        file.write_bytes(other.read_bytes())
    else:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if damage == "flipped" else content[:-9])
    with pytest.raises(ValueError, match=r"does not restore the weights|is damaged or of another model"):
        prepare_undo(tmp_path / "out")
    assert not changed(after, load(tmp_path / "out"))
    assert len(read_ledger(tmp_path / "out")) == 1


def test_weights_that_something_else_has_changed_are_not_lost(
    tmp_path: Path, model: PreTrainedModel, unlearn: Callable[..., None]
) -> None:
    unlearn(model, tmp_path / "out")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    other.lm_head.weight.data[0, 0] += 1
    other.save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="something else has changed them"):
        prepare_undo(tmp_path / "out")


def test_a_damaged_ledger_is_found_before_training(
    tmp_path: Path, model: PreTrainedModel, unlearn: Callable[..., None]
) -> None:
    unlearn(model, tmp_path / "one")
    file = tmp_path / "one" / "ledger.jsonl"
    file.write_text(file.read_text().replace('"seed": 42', '"seed": 43'))
    with pytest.raises(ValueError, match="entry 1 is not what was written"):
        unlearn(tmp_path / "one", tmp_path / "two")


# The commands


def test_ledger_verify_and_undo_from_the_command_line(
    tmp_path: Path, model: PreTrainedModel, unlearn: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(model)
    folder = str(tmp_path / "out")
    unlearn(model, tmp_path / "out")
    capsys.readouterr()
    cli.main(["verify", folder])
    verified = capsys.readouterr().out
    assert "1 entry, and the weights" in verified
    assert "_undo holds weights from before. Whoever has them and these can extract what was forgotten." in verified
    cli.main(["undo", folder])
    assert weights_hash(before) in capsys.readouterr().out
    cli.main(["verify", folder])
    assert "Warning" not in capsys.readouterr().out
    cli.main(["ledger", folder])
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("unlearn", "undone", "undoes 1", weights_hash(before)[:12]))
    assert not any(row["answer"] in printed for row in rows("Orla", 6))

    build_model(seed=1).save_pretrained(folder)
    with pytest.raises(SystemExit, match="the weights are not those that entry 2, the last, has left"):
        cli.main(["verify", folder])


@pytest.mark.parametrize("command", ["ledger", "verify", "undo"])
def test_a_folder_without_a_ledger_is_told_in_a_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main([command, str(tmp_path)])
    assert error.value.code == 2
    assert f"r2f {command}: error: There is no ledger.jsonl in" in capsys.readouterr().err
