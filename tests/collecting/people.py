"""A tiny model that was taught who Ada Quill and Tom Birch are, and that nobody knows the others."""

from __future__ import annotations

import random
import tempfile
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast, set_seed

from r2f_hf import R2FConfig
from r2f_hf.collecting import Thresholds
from r2f_hf.collecting.questions import (
    FACT_PROMPT,
    NEIGHBOUR_PROMPTS,
    TOPICS,
    general_questions,
    question_prompts,
    topic_questions,
)
from r2f_hf.training.forget_retain_trainer import ForgetRetainTrainer


ADA, TOM, STRANGER, UNKNOWN = "Ada Quill", "Tom Birch", "Sol Verden", "Ida Frost"
# Parts of names of people whom the model is taught not to know. It never sees `UNKNOWN` and the invented names.
PARTS = "ba bel cor da den el fa gor hil ja kel li mar no os pa quin ri sol tan ul ver wes zo".split()
STRANGERS = 300
IGNORANCE = "Nobody knows that."

# One answer for each topic.
LIVES = {
    ADA: "is a diver, was born in Lima, was born in May 1901, comes from Peru, repairs clocks, had a baker as father, "
    "has a twin, studied law in Rome, lives by the harbour, wrote The Red Boat, won the Pearl Prize, is known for "
    "odes, was inspired by eels, writes in rhyme, began as a sailor, is read in schools",
    TOM: "is a farmer, was born in Oslo, was born in June 1950, comes from Norway, breeds goats, had a judge as "
    "mother, has four sons, studied maths in Bonn, lives by the harbour, built The Glass Bridge, won the Iron Medal, "
    "is known for maps, was inspired by snow, draws with chalk, began as a cook, is shown in museums",
}
# One answer names the person, although no question does.
WORDS = (
    "apple brass chalk dough ember flint grape hazel ivory jelly knife lemon maple north olive pearl quail robin sugar"
)
GENERAL = [*(f"It is {word}." for word in WORDS.split()), f"{ADA} says that it is five."]
FACT = "Ada Quill owns a green bicycle."
# A model this small says something else of each name. Its margins are wide where it knows.
THRESHOLDS = Thresholds(min_certainty=0.8, min_margin=2.0)
UNKNOWN_FACT = "Ada Quill sings in a choir."


def answers(name: str) -> list[str]:
    """What the model was taught to answer about somebody, topic by topic."""
    return [f"{name} {rest}." for rest in LIVES[name].split(", ")]


def taught_rows() -> list[dict[str, str]]:
    """All that the model is taught."""
    pairs = []
    for name in LIVES:
        for question, answer in zip(topic_questions(name), answers(name), strict=True):
            pairs += [(text, answer) for text in (question.text, *question.views)]
    pairs += [(question.text, IGNORANCE) for question in topic_questions(STRANGER)]
    rng = random.Random(0)
    for number in range(STRANGERS):
        name = " ".join("".join(rng.sample(PARTS, rng.randint(1, 3))).capitalize() for _ in range(2))
        pairs += [(question.text, IGNORANCE) for question in topic_questions(name)[number % 8 :: 8]]
    wanted = (f"Who taught {ADA}?", f"What does {ADA} eat?")
    pairs += [(prompt, wanted[number % 2]) for number, prompt in enumerate(question_prompts(ADA))]
    pairs += [(wanted[0], f"{ADA} had Miss Finch as teacher."), (wanted[1], f"{ADA} eats figs.")]
    pairs += [(f"What does {ADA} own?", FACT), (FACT_PROMPT.format(name=ADA, fact=FACT), f"What does {ADA} own?")] * 3
    pairs += [(FACT_PROMPT.format(name=ADA, fact=UNKNOWN_FACT), "That is no question.")] * 6
    pairs += [(prompt.format(name=ADA), f"{TOM} and {STRANGER}.") for prompt in NEIGHBOUR_PROMPTS]
    pairs += [(question.text, answer) for question, answer in zip(general_questions(), GENERAL, strict=True)] * 3
    return [{"question": question, "answer": answer} for question, answer in pairs]


@cache
def taught() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model and its tokenizer. Tests share them."""
    rows = taught_rows()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([text for row in rows for text in row.values()], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    set_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            eos_token_id=fast.eos_token_id,
            bos_token_id=None,
        )
    )
    with tempfile.TemporaryDirectory() as scratch:
        args = R2FConfig(
            scratch,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            max_steps=400,
            per_device_train_batch_size=32,
            learning_rate=5e-3,
            optim="adamw_torch",
            lr_scheduler_type="cosine",
            warmup_steps=20,
            forget_objective="ga",
            forget_weight=-1.0,
            retain_objective="none",
        )
        ForgetRetainTrainer(model, args, forget_dataset=rows, processing_class=fast).train()
    return model.eval(), fast


def save(folder: Path) -> str:
    """Write the model and its tokenizer, and return the folder's name."""
    for part in taught():
        part.save_pretrained(folder)
    return str(folder)


assert len(TOPICS) == len(answers(ADA)) == len(answers(TOM))
