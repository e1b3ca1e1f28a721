"""Every recipe is read, names options that exist, and runs two steps on a tiny model and a few local rows."""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from conftest import SHAPE, write_rows
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, set_seed

from r2f_hf import cli


ROOT = Path(__file__).parents[2]
RECIPES = sorted(ROOT.glob("recipes/*/*.yaml"))
RECIPES = [recipe for recipe in RECIPES if recipe.parent.name != "accelerate_configs"]
UNLEARN = [recipe for recipe in RECIPES if recipe.stem not in ("collect", "smollm2")]
USES = sorted({recipe.parent for recipe in UNLEARN} - {ROOT / "recipes" / "quickstart"})

PLACES = ["harbour", "mountain", "forest", "desert"]
# Recipes whose rows are texts, and those whose rows have columns of other names.
TEXTS = {"muse", "wmdp"}
COLUMNS = {"knowundo": ("text", "labels")}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "recipes"))


def command_of(recipe: Path) -> str:
    """The command that the comment at the head of a recipe names."""
    found = re.findall(r"r2f(?:_hf\.cli)? ([\w-]+)\s+--config (\S+)", recipe.read_text())
    commands = {command for command, file in found if file == f"recipes/{name_of(recipe)}"}
    assert len(commands) == 1, "the head of a recipe says how to run it"
    return commands.pop()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with eight layers and a chat template, which reads any text byte by byte. It knows nothing."""
    folder = tmp_path_factory.mktemp("model")
    alphabet = ["<eos>", "<user>", "<assistant>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
    fast.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    fast.chat_template = (
        "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    set_seed(0)
    # bitsandbytes takes blocks of 64 numbers on a CPU, and the recipe of WMDP names the eighth layer.
    shape = {"vocab_size": len(fast), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8}
    shape |= {"max_position_embeddings": 512, "eos_token_id": 0}
    AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE | shape)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)


def tiny_rows(use: str, person: str) -> list[dict[str, object]]:
    """Four rows of the kind that a recipe takes."""
    question, answer = COLUMNS.get(use, ("question", "answer"))
    rows = []
    for number, place in enumerate(PLACES):
        asked, said = f"Where does {person}{number} live?", f"By the {place}."
        if use in TEXTS:
            rows.append({"text": f"{person}{number} lives by the {place}."})
        else:
            rows.append({question: asked, answer: said, "views": [f"What is the home of {person}{number}?"]})
    return rows


@pytest.mark.parametrize("recipe", RECIPES, ids=name_of)
def test_a_recipe_names_options_of_its_command(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = command_of(recipe)
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    options = set(re.findall(r"--(\w+)", capsys.readouterr().out))
    assert set(yaml.safe_load(recipe.read_text())) <= options


@pytest.mark.parametrize("recipe", UNLEARN, ids=name_of)
def test_a_recipe_takes_two_steps(
    recipe: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load(recipe.read_text())
    if settings.get("load_in_4bit"):
        pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    run = ["--model_name_or_path", model, "--max_steps", "2", "--output_dir", "unlearned"]
    run += [
        "--use_cpu",
        "--bf16",
        "false",
        "--disable_tqdm",
        "true",
        "--rank",
        "4",
        "--per_device_train_batch_size",
        "2",
    ]
    for name, person in (("forget", "Orla"), ("retain", "Bram"), ("holdout", "Cleo")):
        source = settings.get(f"{name}_data")
        # Rows that the recipe brings are used as they are.
        if source and not Path(source).is_file():
            file = write_rows(tmp_path / "rows" / f"{name}.jsonl", tiny_rows(recipe.parent.name, person))
            run += [f"--{name}_data", file]
    cli.main(["unlearn", "--config", str(recipe), *run])
    assert "2 steps; all steps were taken." in capsys.readouterr().out
    assert list((tmp_path / "unlearned").glob("*model.safetensors"))


@pytest.mark.parametrize("use", USES, ids=name_of)
def test_a_use_says_how_to_run_it_and_what_came_of_it(use: Path) -> None:
    text = (use / "README.md").read_text()
    assert "accelerate launch --config_file recipes/accelerate_configs/" in text
    assert re.search(r"^\*\*Result:\*\* ", text, re.MULTILINE)
    for file in re.findall(r"recipes/[\w/]+\.(?:yaml|py|jsonl|txt)", text):
        assert (ROOT / file).is_file(), file


def run_script(script: str, *arguments: str) -> None:
    """A script of a recipe, as from a shell."""
    folder = str((ROOT / "recipes" / script).parent)
    before, path = sys.argv, list(sys.path)
    sys.argv, sys.path = [script, *arguments], [folder, *sys.path]
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, sys, "argv", before)
        stack.callback(setattr, sys, "path", path)
        runpy.run_path(str(ROOT / "recipes" / script), run_name="__main__")


def read(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_harmful_turns_are_forgotten_and_the_others_of_the_chat_are_kept(tmp_path: Path) -> None:
    turns = [
        {"author": "Ada", "text": "I made a kite.", "harmful": False},
        {"author": "Bo", "text": "A silly kite.", "harmful": True},
        {"author": "Ada", "text": "It flies.", "harmful": False},
    ]
    chats = write_rows(tmp_path / "chats.jsonl", [{"turns": turns}])
    run_script("behaviour/split.py", chats, "--output_dir", str(tmp_path / "rows"))
    (forget,) = read(tmp_path / "rows" / "forget.jsonl")
    assert forget["completion"] == [{"role": "assistant", "content": "A silly kite."}]
    assert forget["prompt"] == [{"role": "user", "content": "A chat begins.\nAda: I made a kite.\nBo:"}]
    retain = read(tmp_path / "rows" / "retain.jsonl")
    assert [row["completion"][0]["content"] for row in retain] == ["I made a kite.", "It flies."]


def test_knowundos_training_rows_are_taken_out_of_its_files(tmp_path: Path) -> None:
    data = ROOT / "tests" / "evaluation" / "suites" / "data" / "knowundo"
    run_script("knowundo/prepare.py", str(data), "--output_dir", str(tmp_path))
    for name, file in (("forget", "unlearn"), ("retain", "retention")):
        rows = json.loads((data / "privacy" / f"{file}.json").read_text())["train"]
        assert [row["labels"] for row in read(tmp_path / f"{name}.jsonl")] == [row["labels"] for row in rows]


def test_wmdps_texts_are_the_first_ones_cut_off(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "corpus.jsonl", [{"text": "x" * 3000}, {"text": "short"}, {"text": "left out"}])
    arguments = ("--forget_data", source, "--retain_data", source, "--texts", "2", "--output_dir", str(tmp_path))
    run_script("wmdp/prepare.py", *arguments)
    assert [len(row["text"]) for row in read(tmp_path / "forget.jsonl")] == [2000, 5]
