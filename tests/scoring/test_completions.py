"""The scores and answers of a batch are those of one row at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from statistics import fmean

import pytest
import torch
from conftest import CONFIGS, SHAPE, build_model
from peft import PeftModel, PromptTuningConfig, get_peft_model
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from r2f_hf.data.formatting import encode_example, encode_prompt, end_of_answer
from r2f_hf.scoring.completions import (
    can_continue,
    over_processes,
    score_completions,
    score_examples,
    seconds_by_part,
)
from r2f_hf.scoring.generation import generate_answers, sample_answers, whole_answer


PROMPTS = ["Where does Orla1 live?", "What is the home of Bram2?", "Cleo?", "Bram3 lives where?", "Orla?"]
COMPLETIONS = [
    "By the harbour.",
    "Bram2 lives by the mountain.",
    "The forest.",
    "Island",
    "Orla1 lives by the desert.",
]


def naive_log_probs(model: torch.nn.Module, example: dict[str, list[int]]) -> list[float]:
    with torch.no_grad():
        log_probs = model(input_ids=torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
    # If the model adds virtual tokens, they come before the first token.
    log_probs = log_probs[-len(example["input_ids"]) :]
    labelled = [index for index, label in enumerate(example["labels"]) if label != -100 and index > 0]
    return [log_probs[index - 1, example["labels"][index]].item() for index in labelled]


def naive_score(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, prompt: str, completion: str) -> float:
    return fmean(naive_log_probs(model, encode_example(tokenizer, prompt, completion)))


def naive_answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, tokens: int) -> str:
    ids = encode_prompt(tokenizer, prompt)
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + tokens:
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_scores_equal_those_of_one_row_at_a_time(
    kind: str, batch_size: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build_model(kind).eval()
    scores = score_completions(model, tokenizer, PROMPTS, COMPLETIONS, batch_size)
    expected = [naive_score(model, tokenizer, *pair) for pair in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert scores.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_completions_that_share_their_prompts_score_as_if_they_did_not(
    kind: str, batch_size: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build_model(kind).eval()
    pairs = [(prompt, completion) for completion in COMPLETIONS for prompt in PROMPTS[:3]]
    read = []
    handle = model.register_forward_pre_hook(
        lambda module, args, inputs: read.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    scores = score_completions(model, tokenizer, *zip(*pairs, strict=True), batch_size)
    handle.remove()
    assert scores.tolist() == pytest.approx([naive_score(model, tokenizer, *pair) for pair in pairs], abs=1e-5)
    if batch_size == 16:
        longest = max(len(encode_example(tokenizer, *pair)["input_ids"]) for pair in pairs)
        assert sum(read) < 0.75 * longest * len(pairs)


@pytest.mark.parametrize("kind", CONFIGS)
def test_long_and_short_prompts_share_a_batch_within_the_context(kind: str) -> None:
    """Long prompts with short completions, and the other way round: padding must not count or leave the context."""
    config = copy.deepcopy(CONFIGS[kind])
    if hasattr(config, "sliding_window"):
        config.sliding_window = 8
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    rows = []
    for start, length in ((50, 8), (50, 6), (6, 50), (6, 40)):
        ids = torch.randint(5, 150, (start,), generator=torch.Generator().manual_seed(start)).tolist()
        ids += torch.randint(5, 150, (length,)).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    assert can_continue(model)
    sums, _ = score_examples(model, rows, padding=0, batch_size=4)
    assert sums.tolist() == pytest.approx([sum(naive_log_probs(model, row)) for row in rows], abs=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradient_checkpointing_in_training_mode_changes_no_score(
    kind: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build_model(kind).eval()
    prompts = [PROMPTS[0]] * 5
    expected = score_completions(model, tokenizer, prompts, COMPLETIONS)
    model.gradient_checkpointing_enable()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert score_completions(model.train(), tokenizer, prompts, COMPLETIONS) == pytest.approx(expected, abs=1e-5)


def test_an_empty_answer_is_named(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"forget\[1\] has no token to score"):
        score_completions(model, tokenizer, [""] * 2, ["Island here", ""], names=["forget[0]", "forget[1]"])


def test_nothing_to_score_gives_nothing(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(score_completions(model, tokenizer, [], [])) == 0


def test_a_completion_of_one_token_is_scored_by_its_prompt_alone(model: PreTrainedModel) -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, {"input_ids": [5, 6, 8], "labels": [-100, -100, 8]}]
    sums, tokens = score_examples(model.eval(), rows, padding=0, batch_size=2)
    assert tokens.tolist() == [1, 1]
    assert sums.tolist() == pytest.approx([naive_log_probs(model, row)[0] for row in rows], abs=1e-5)


def prompt_tuned() -> PeftModel:
    return get_peft_model(build_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


def with_dynamic_positions() -> PreTrainedModel:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, rope_parameters=rope))


def recurrent() -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(MambaConfig(vocab_size=160, hidden_size=32, num_hidden_layers=2))


def convolutional() -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"]))


@pytest.mark.parametrize("build", [prompt_tuned, with_dynamic_positions, recurrent, convolutional])
def test_a_model_that_cannot_continue_scores_whole_rows(
    build: Callable[[], torch.nn.Module], tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(0)
    model = build().eval()
    assert not can_continue(model)
    scores = score_completions(model, tokenizer, [PROMPTS[0]] * 5, COMPLETIONS)
    assert scores.tolist() == pytest.approx(
        [naive_score(model, tokenizer, PROMPTS[0], completion) for completion in COMPLETIONS], abs=1e-4
    )


def test_plain_texts_are_scored_from_their_second_token_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    scores = score_completions(model.eval(), tokenizer, [""] * 5, COMPLETIONS, 2)
    assert scores.tolist() == pytest.approx(
        [naive_score(model, tokenizer, "", text) for text in COMPLETIONS], abs=1e-4
    )


def test_a_row_that_does_not_fit_the_context_is_named(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    completions = [*COMPLETIONS[:3], "harbour " * 100, "Island"]
    with pytest.raises(ValueError, match=r"Row 3 has a question and an answer of \d+ tokens.*reads at most 64"):
        score_completions(model, tokenizer, PROMPTS, completions)
    names = [f"forget[{index}]" for index in range(5)]
    with pytest.raises(ValueError, match=r"forget\[3\] has a question and an answer of \d+ tokens"):
        score_completions(model, tokenizer, PROMPTS, completions, names=names)


def test_a_prompt_that_leaves_no_room_for_its_answer_is_named(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    prompts = ["Orla?", "harbour " * 8]
    room = 64 - len(encode_prompt(tokenizer, prompts[1]))
    assert len(generate_answers(model.eval(), tokenizer, prompts, max_new_tokens=room)) == 2
    with pytest.raises(ValueError, match=rf"Prompt 1 of those to answer has {64 - room} tokens.*reads at most 64"):
        generate_answers(model, tokenizer, prompts, max_new_tokens=room + 1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_answers_equal_greedy_decoding_of_one_row_at_a_time(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model(kind).eval()
    answers = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=8, batch_size=3)
    assert answers == [naive_answer(model, tokenizer, prompt, 8) for prompt in PROMPTS]
    assert len(set(answers)) > 1


def test_answers_end_at_the_end_of_sequence(
    memorised: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, forget_rows: list[dict[str, object]]
) -> None:
    """A model that knows the rows answers with them, and adds nothing after them. Their lengths differ."""
    questions = [row["question"] for row in forget_rows]
    answers = generate_answers(memorised, tokenizer, questions, max_new_tokens=30, batch_size=4)
    known = [tokenizer.decode(tokenizer(" " + row["answer"])["input_ids"]).strip() for row in forget_rows]
    assert answers == known == [naive_answer(memorised, tokenizer, question, 30) for question in questions]


def test_answers_end_where_the_chat_template_ends_a_turn(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    whole = generate_answers(model.eval(), chat, ["Orla?"], max_new_tokens=8)[0]
    # Make the first token that the model generates the end of a turn.
    with torch.no_grad():
        end = int(model(input_ids=torch.tensor([encode_prompt(chat, "Orla?")])).logits[0, -1].argmax())
    name = chat.convert_ids_to_tokens(end)
    chat.add_tokens([AddedToken(name, special=True)])
    chat.chat_template += "{% if messages[-1].role == 'assistant' %}" + name + "{% endif %}"
    assert end_of_answer(chat) == end
    answer = generate_answers(model, chat, ["Orla?"], max_new_tokens=8)[0]
    assert len(answer) < len(whole)
    assert answer in ("", chat.decode([end]).strip())


def test_a_token_without_an_embedding_is_refused_by_its_row(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    more = copy.deepcopy(tokenizer)
    # The model has some embeddings that no token uses.
    more.add_tokens([f"extra{index}" for index in range(model.get_input_embeddings().num_embeddings)])
    more.add_tokens(["Orla77"])
    with pytest.raises(ValueError, match=r"Row 1 has a token of id \d+, and the model has embeddings for") as error:
        score_completions(model, more, PROMPTS[:2], ["Island", "Orla77"])
    assert "Orla77" not in str(error.value)
    with pytest.raises(ValueError, match=r"Prompt 1 of those to answer has a token of id \d+"):
        generate_answers(model, more, ["Who?", "Who is Orla77?"], 4)


def test_the_seconds_of_each_part_are_measured() -> None:
    with seconds_by_part() as outer:
        over_processes(lambda batch: batch, [0, 1, 2], 2, "first", True)
        with seconds_by_part() as inner:
            over_processes(lambda batch: batch, [0], 2, "second", True)
    over_processes(lambda batch: batch, [0], 2, "third", True)
    assert outer.keys() == {"first", "second"} and inner == {"second": outer["second"]} and min(outer.values()) >= 0


def test_an_answer_ends_with_its_last_whole_sentence(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Orla1 lives by the harbour. And Bram2 lives"
    assert whole_answer(tokenizer, text, 64) == text
    assert whole_answer(tokenizer, text, 4) == "Orla1 lives by the harbour."
    assert whole_answer(tokenizer, "Bram2 lives", 2) == ""
    assert whole_answer(tokenizer, f"{text}\nQuestion: Where?", 64) == text


def test_one_likeliest_token_leaves_nothing_to_draw(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("llama").eval()
    prompts = ["Where does Orla1 live?", encode_prompt(tokenizer, "And Bram2?")]
    drawn = sample_answers(model, tokenizer, prompts, 2, max_new_tokens=5, top_k=1)
    greedy = generate_answers(model, tokenizer, prompts, 5)
    assert drawn == [[text, text] for text in greedy]
