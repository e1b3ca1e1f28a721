"""All objectives through the trainer: they train, keep what they need in checkpoints, and refuse what cannot work."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import OBJECTIVE_OPTIONS, BuildTrainer, build_model, changed, weights
from transformers import PreTrainedModel

from r2f_hf.data.refusals import REFUSALS
from r2f_hf.data.second_answers import FILE, read_answers
from r2f_hf.objectives import FORGET_OBJECTIVES, RETAIN_OBJECTIVES
from r2f_hf.training.forget_retain_trainer import ForgetRetainTrainer


CHECKPOINTS: dict[str, Any] = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture
def data(refused_rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"forget_dataset": refused_rows}


def losses(trainer: ForgetRetainTrainer, name: str = "forget_loss") -> list[float]:
    return [logs[name] for logs in trainer.state.log_history if name in logs]


@pytest.mark.parametrize("name", FORGET_OBJECTIVES)
def test_every_forget_objective_trains_by_its_name(
    name: str, model: PreTrainedModel, build_trainer: BuildTrainer, data: dict[str, Any]
) -> None:
    before = weights(model)
    # As a command line gives them.
    options = json.dumps(OBJECTIVE_OPTIONS.get(name, {}))
    trainer = build_trainer(
        model, data=data, forget_objective=name, forget_objective_kwargs=options, learning_rate=1e-2, max_steps=3
    )
    trainer.train()
    assert changed(before, weights(trainer.model.unload()))
    assert len(losses(trainer)) == 3 and all(map(math.isfinite, losses(trainer)))
    assert trainer.r2f_callback.skipped_steps == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in RETAIN_OBJECTIVES), ("kl", {"k": None}), ("jensen_shannon", {"k": None})],
)
def test_every_retain_objective_trains_by_its_name(
    name: str, options: dict[str, Any], model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    trainer = build_trainer(model, retain_objective=name, retain_objective_kwargs=options)
    trainer.train()
    first, second = losses(trainer, "retain_loss")
    assert math.isfinite(second)
    if name != "nll":
        # The model is its own reference at the first step.
        assert first == pytest.approx(0, abs=1e-5) and second > 1e-7


@pytest.mark.parametrize(
    "name", ["pdu", "ignorance", "altpo", "bs_s", "duet", "idk", "undial", "shred", "adaptive_rmu"]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    name: str, tmp_path: Path, build_trainer: BuildTrainer, data: dict[str, Any]
) -> None:
    settings = CHECKPOINTS | {"forget_objective": name, "forget_objective_kwargs": OBJECTIVE_OPTIONS.get(name)}
    if name == "adaptive_rmu":
        settings["retain_objective"] = "hidden_states"
    whole, resumed = build_model(), build_model()
    trainer = build_trainer(whole, data=data, **settings)
    trainer.train()
    # The checkpoints have what the model wrote. The output folder may be lost.
    (tmp_path / "output" / FILE).unlink(missing_ok=True)
    again = build_trainer(resumed, data=data, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    assert losses(again) == losses(trainer)
    assert not changed(weights(whole), weights(resumed))
    assert again.forget_objective.state() == trainer.forget_objective.state()


def test_a_resumed_run_knows_what_earlier_checks_have_found(
    tmp_path: Path,
    build_trainer: BuildTrainer,
    memorised_model: PreTrainedModel,
    holdout_rows: list[dict[str, object]],
) -> None:
    settings = CHECKPOINTS | {"forget_objective": "ignorance", "forget_objective_kwargs": {"lift_after": 1}}
    settings |= {"stop_check_steps": 1, "learning_rate": 1e-3, "data": {"holdout_dataset": holdout_rows}}
    whole, resumed = copy.deepcopy(memorised_model), memorised_model
    trainer = build_trainer(whole, **settings)
    trainer.train()
    (tmp_path / "output" / FILE).unlink(missing_ok=True)
    again = build_trainer(resumed, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "output" / "checkpoint-2"))
    assert again.forget_objective.level_factor == trainer.forget_objective.level_factor > 1
    assert losses(again) == losses(trainer)
    assert not changed(weights(whole), weights(resumed))


@pytest.mark.parametrize("name", ["pdu", "bs_s", "idk", "ce_u", "dpo", "adaptive_rmu"])
def test_micro_batches_give_what_one_batch_gives(
    name: str, build_trainer: BuildTrainer, data: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"forget_objective": name, "forget_objective_kwargs": OBJECTIVE_OPTIONS.get(name), "max_steps": 3}
    found = []
    for size, accumulation in ((4, 1), (1, 4)):
        trainer = build_trainer(
            build_model(),
            data=data,
            output_dir=str(tmp_path / str(size)),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            learning_rate=1e-2,
            **settings,
        )
        trainer.train()
        found.append((losses(trainer), losses(trainer, "retain_loss"), trainer.forget_objective.retain_factor))
    for one, four in zip(*found, strict=True):
        assert four == pytest.approx(one, rel=1e-3, abs=1e-5)


def test_the_dual_variable_follows_the_retain_loss(model: PreTrainedModel, build_trainer: BuildTrainer) -> None:
    options = {"retain_limit": 4.0, "dual_step": 0.5}
    settings = {"forget_objective": "pdu", "forget_objective_kwargs": options, "max_steps": 4, "logging_steps": 1}
    trainer = build_trainer(model, **settings)
    trainer.train()
    expected = [1.0]
    for loss in losses(trainer, "retain_loss"):
        expected.append(max(0.0, expected[-1] + 0.5 * (loss - 4.0)))
    assert trainer.forget_objective.retain_factor == pytest.approx(expected[-1], rel=1e-5)
    assert losses(trainer, "retain_factor") == pytest.approx(expected[1:], rel=1e-5)
    totals = zip(expected, losses(trainer), losses(trainer, "retain_loss"), strict=False)
    assert losses(trainer, "loss") == pytest.approx([f + factor * r for factor, f, r in totals], rel=1e-4)
    # A run of the same trainer that begins anew begins with the first value.
    trainer.args.max_steps = 1
    trainer.train()
    assert losses(trainer, "loss")[0] == pytest.approx(
        losses(trainer)[0] + losses(trainer, "retain_loss")[0], rel=1e-4
    )


def test_what_the_model_writes_is_kept_next_to_the_result(
    model: PreTrainedModel, tmp_path: Path, build_trainer: BuildTrainer, forget_rows: list[dict[str, Any]]
) -> None:
    options = {"num_answers": 3, "max_new_tokens": 6, "temperature": 2.0}
    trainer = build_trainer(model, forget_objective="bs_s", forget_objective_kwargs=options)
    trainer.train()
    kept = read_answers(tmp_path / "output" / FILE)
    assert len(kept) == len(forget_rows) and all(1 <= len(answers) <= 3 for answers in kept)
    decode = trainer.processing_class.decode
    for answers, (view,) in zip(kept, trainer.splits.forget, strict=True):
        seen = [decode([id for id in second["labels"] if id != -100][:-1]).strip() for second in view["second"]]
        assert seen == answers
    before = build_trainer(build_model(), forget_objective="bs_s", forget_objective_kwargs=options)
    before.train()
    assert read_answers(tmp_path / "output" / FILE) == kept


def test_a_model_that_only_repeats_itself_is_asked_again_and_refused_in_the_end(
    memorised_model: PreTrainedModel, build_trainer: BuildTrainer
) -> None:
    options = {"instruction": "{prompt}", "num_answers": 1, "temperature": 1e-3, "max_new_tokens": 30}
    before = weights(memorised_model)
    trainer = build_trainer(memorised_model, forget_objective="altpo", forget_objective_kwargs=options)
    with pytest.raises(ValueError, match=r"no second answer to forget\[\d\] that differs from its own") as refusal:
        trainer.train()
    # The text may have to stay private.
    assert "lives" not in str(refusal.value)
    assert not changed(before, weights(trainer.model.unload()))
    # What the model believes in may be what is to be forgotten.
    options = {"num_answers": 2, "max_new_tokens": 30}
    trainer = build_trainer(trainer.model.unload(), forget_objective="bs_s", forget_objective_kwargs=options)
    trainer.train()
    assert math.isfinite(losses(trainer)[-1])


def test_each_wording_has_second_answers_of_its_own_which_take_turns(
    model: PreTrainedModel, build_trainer: BuildTrainer, data: dict[str, Any]
) -> None:
    options = {"forget_objective": "dpo", "forget_objective_kwargs": OBJECTIVE_OPTIONS["dpo"]}
    trainer = build_trainer(model, data=data, num_views=2, views_column="paraphrased_question", **options)
    dataset, seen = trainer.train_dataset, set()
    for epoch in range(2):
        dataset.set_epoch(epoch)
        item = dataset[0]
        assert len(item["second"]) == len(item["forget"]) == 2
        for view, second in zip(item["forget"], item["second"], strict=True):
            prompts = [
                [id for id, label in zip(each["input_ids"], each["labels"], strict=True) if label == -100]
                for each in (view, second)
            ]
            assert prompts[0] == prompts[1]
            seen.add(tuple(second["labels"]))
    assert len({tuple(label for label in labels if label != -100) for labels in seen}) == 2
    batch = trainer.data_collator([dataset[0], dataset[1]])
    assert batch["is_forget"].tolist() == [True] * 4 + [False] * 6
    assert batch["is_second"].tolist() == [False] * 4 + [True] * 4 + [False] * 2
    assert batch["item"].tolist() == [0, 0, 1, 1] * 2 + [0, 1]


def test_what_reads_no_answers_has_none_in_its_batches(
    model: PreTrainedModel, build_trainer: BuildTrainer, data: dict[str, Any]
) -> None:
    options = {"forget_objective": "idk", "forget_objective_kwargs": OBJECTIVE_OPTIONS["idk"]}
    trainer = build_trainer(model, data=data, **options)
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    assert batch["is_forget"].tolist() == [False] * 4
    assert batch["is_second"].tolist() == [True, True, False, False]
    # The answers are never read, so that the run is the same without them.
    trainer.train()
    others = {"forget_dataset": [row | {"answer": "Cleo."} for row in data["forget_dataset"]]}
    again = build_trainer(build_model(), data=others, overwrite_output_dir=True, **options)
    again.train()
    assert losses(again) == losses(trainer)


def test_the_teacher_of_duet_reads_the_instruction(
    model: PreTrainedModel, build_trainer: BuildTrainer, data: dict[str, Any]
) -> None:
    original = copy.deepcopy(model).eval()
    trainer = build_trainer(
        model, data=data, forget_objective="duet", forget_objective_kwargs=OBJECTIVE_OPTIONS["duet"]
    )
    trainer.train()
    for second in trainer.splits.second:
        prompt, taught = ([id for id in each["labels"] if id != -100] for each in (second, second["teacher"]))
        assert prompt == taught and len(second["teacher"]["input_ids"]) > len(second["input_ids"])
        with torch.no_grad():
            logits = original(input_ids=torch.tensor([second["teacher"]["input_ids"]])).logits[0, :-1]
        said = logits[torch.tensor(second["teacher"]["labels"])[1:] != -100].log_softmax(-1)
        row = torch.tensor([second["row"]])
        ids, log_probs = (trainer.references.of_rows(f"second_top_{kind}", row) for kind in ("ids", "log_probs"))
        torch.testing.assert_close(log_probs, said.gather(-1, ids), atol=1e-4, rtol=1e-5)


def test_the_anchor_is_the_holdout_sets_mean_margin(
    model: PreTrainedModel, build_trainer: BuildTrainer, holdout_rows: list[dict[str, Any]]
) -> None:
    original = copy.deepcopy(model).eval()
    trainer = build_trainer(model, data={"holdout_dataset": holdout_rows}, forget_objective="margin")
    trainer.train()
    margins = []
    for example in trainer.splits.holdout:
        with torch.no_grad():
            logits = original(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1]
        for scores, label in zip(logits, example["labels"][1:], strict=True):
            if label != -100:
                others = torch.cat([scores[:label], scores[label + 1 :]])
                margins.append((scores[label] - others.max()).item())
    assert trainer.references.tensors["holdout_margin"].item() == pytest.approx(sum(margins) / len(margins), rel=1e-4)


def test_refusals_are_dealt_by_the_seed(build_trainer: BuildTrainer, data: dict[str, Any], tmp_path: Path) -> None:
    lines = tmp_path / "refusals.txt"
    lines.write_text("Bram.\n\nCleo lives.\nOrla.\nBram.\n", encoding="utf-8")
    dealt = []
    for seed in (0, 0, 1):
        options = {"answers": str(lines), "num_answers": 2}
        trainer = build_trainer(
            build_model(), data=data, forget_objective="idk", forget_objective_kwargs=options, seed=seed
        )
        dealt.append(trainer.splits.texts["second"])
    assert dealt[0] == dealt[1] != dealt[2]
    assert all(len(set(answers)) == 2 and set(answers) <= {"Bram.", "Cleo lives.", "Orla."} for answers in dealt[0])
    assert len(set(REFUSALS)) == len(REFUSALS) >= 20


@pytest.mark.parametrize(
    ("settings", "rows", "message"),
    [
        ({"forget_objective": "rmu", "forget_objective_kwargs": {"layer": 3}}, {}, "the model has 2 layers"),
        (
            {"retain_objective": "hidden_states", "retain_objective_kwargs": {"layer": 9}},
            {},
            "`layer` of the objective HiddenStates is 9",
        ),
        ({"forget_objective": "margin"}, {}, "takes its `anchor` from the holdout set, and there is none"),
        ({"forget_objective": "ignorance"}, {}, "takes its `level` from the holdout set, and there is none"),
        ({"forget_objective": "pdu", "retain_objective": "none"}, {}, "only defined together with a retain loss"),
        (
            {"forget_objective": "dpo", "forget_objective_kwargs": {"answers": "refusl"}},
            {},
            "whose columns are 'question', 'answer'.* Did you mean 'refusal'",
        ),
        (
            {"forget_objective": "dpo", "forget_objective_kwargs": {"answers": "refusal"}},
            {"refusal": [" "]},
            r"forget\[1\] has no second answer in 'refusal'",
        ),
        ({"forget_objective": "idk"}, {"text": True}, "The forget set holds texts"),
        (
            {"forget_objective": "jensun", "forget_objective_kwargs": {"target": "東京"}},
            {},
            "tokenizer does not know",
        ),
        (
            {
                "forget_objective": "bs_s",
                "forget_objective_kwargs": {"max_new_tokens": 60},
            },
            {},
            "leaves no room for `max_new_tokens=60`",
        ),
    ],
)
def test_refuses_before_any_weight_changes(
    settings: dict[str, Any],
    rows: dict[str, Any],
    message: str,
    model: PreTrainedModel,
    build_trainer: BuildTrainer,
    data: dict[str, Any],
) -> None:
    before = weights(model)
    if rows.get("text"):
        data = {"forget_dataset": [{"text": "Orla lives by the harbour."}]}
    elif rows:
        data["forget_dataset"][1] |= rows
    with pytest.raises(ValueError, match=message):
        build_trainer(model, data=data, **settings).train()
    assert not changed(before, weights(model))
