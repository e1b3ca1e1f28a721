"""From a recipe (YAML) and flags to dataclasses, and from a model's name to the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, TrlParser, get_quantization_config

from ..lookup import lookup
from ..zero import from_pretrained


@dataclass
class PlainModelConfig(ModelConfig):
    """TRL's [`~trl.ModelConfig`], with the model in its own precision unless another is asked for."""

    dtype: str | None = field(default="auto", metadata={"help": "Precision of the weights; auto is the model's own."})


# What TRL's ModelConfig offers and R2F takes; the rest is about adapters and quantisation, which R2F decides itself.
_MODEL_FIELDS = ("model_name_or_path", "model_revision", "dtype", "attn_implementation")
_QUANTISATION_FIELDS = ("load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")


def parse_recipe(command: str, dataclass_types: Sequence[type], argv: Sequence[str]) -> tuple[Any, ...]:
    """
    Read a recipe (`--config FILE.yaml`) and the flags that override it.

    Args:
        command (`str`):
            The subcommand, for the usage line.
        dataclass_types (`Sequence[type]`):
            Dataclasses whose fields are the options.
        argv (`Sequence[str]`):
            The subcommand's arguments.

    Returns:
        `tuple`: One instance of each dataclass.

    Raises:
        `ValueError`: For a key or a flag that does not exist (the nearest name is suggested), or a recipe that is not
            YAML.
        `FileNotFoundError`: If the recipe is not there.
    """
    parser = TrlParser(dataclass_types, prog=f"r2f {command}", description="Options, or keys of a recipe (--config).")
    options = {action.dest: action for action in parser._actions}
    # TrlParser knows `--config FILE` alone.
    argv = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "--config" in argv:
        if argv[-1] == "--config":
            raise ValueError("`--config` needs a recipe after it: --config FILE.yaml")
        path = Path(argv[argv.index("--config") + 1])
        if not path.is_file():
            raise FileNotFoundError(f"There is no recipe {path}.")
        try:
            recipe = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"The recipe {path} is not YAML: {error}") from error
        for key in recipe if isinstance(recipe, dict) else ():
            if key != "env":
                lookup(options, key, f"key in {path}", list_all=False)
    *parsed, unknown = parser.parse_args_and_config(argv, return_remaining_strings=True)
    for flag in unknown:
        lookup(options, flag.removeprefix("--").split("=")[0], "option", list_all=False)
    return tuple(parsed)


def asked_to_shard() -> bool:
    """
    Whether `accelerate launch` asks for FSDP. accelerate itself, which would shard the probes too, forgets about it:
    the weights are sharded by Transformers, while they are loaded.
    """
    return os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"


def load_model(
    config: ModelConfig, name: str | None = None, quantised: bool = False, sharded: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a model and its tokenizer.

    Args:
        config ([`~trl.ModelConfig`]):
            What to load and how.
        name (`str`, *optional*):
            Another model to load the same way.
        quantised (`bool`, *optional*, defaults to `False`):
            Whether the configuration may ask for bitsandbytes' 8 or 4 bits.
        sharded (`bool`, *optional*, defaults to `False`):
            Whether to share the weights out over the processes (FSDP2).

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`

    Raises:
        `ValueError`: If no model is named, or the configuration asks for an adapter or for quantisation.
        `FileNotFoundError`: If the name looks like a folder that is not there.
    """
    taken = _MODEL_FIELDS + (_QUANTISATION_FIELDS if quantised else ())
    ignored = [
        option.name
        for option in fields(config)
        if option.name not in taken and getattr(config, option.name) != getattr(PlainModelConfig(), option.name)
    ]
    if ignored:
        raise ValueError(
            f"{', '.join(ignored)}: R2F takes {', '.join(taken)} alone; it brings its own adapter (see `rank`, "
            "`target_modules`), and weights may be quantised only where unlearning leaves them as they are "
            '(`update_target="adapter"`). Leave these options out.'
        )
    name = name or config.model_name_or_path
    if name is None:
        raise ValueError("No model is named. Set `model_name_or_path` to a folder or to a name on the Hub.")
    # Names on the Hub have at most one slash; anything else that is not there is a mistyped folder.
    if not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"There is no model folder {name}.")
    revision = {"revision": config.model_revision if name == config.model_name_or_path else "main"}
    sharding = {}
    if sharded and PartialState().num_processes > 1:
        # Not in all versions of Transformers that serve otherwise.
        from transformers.distributed import DistributedConfig

        sharding = {"distributed_config": DistributedConfig(fsdp_size=PartialState().num_processes)}
    # bitsandbytes computes in a precision that has a name.
    compute = "bfloat16" if config.dtype == "auto" else config.dtype
    model = from_pretrained(
        name,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        quantization_config=get_quantization_config(replace(config, dtype=compute)),
        **revision,
        **sharding,
    )
    return model, AutoTokenizer.from_pretrained(name, **revision)
