"""From a model's name to the model and its tokenizer: what to load, how, and on how many processes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled

from ..runs.weights import architecture


NO_MODEL = "No model is named. Set `model_name_or_path` to a folder or to a name on the Hub."

# What says where a model and its configuration are.
WHERE = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "trust_remote_code")


def from_pretrained(name: str, dtype: str | None = "auto", **kwargs: Any) -> PreTrainedModel:
    """
    As [`~transformers.AutoModelForCausalLM.from_pretrained`], also for models that read more than text, such as LLaVA,
    and where ZeRO-3 shares the weights out while they are loaded: that takes the precision from DeepSpeed's
    configuration, and none is named there (see [`check_zero`]).

    Args:
        name (`str`):
            The model.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights; `"auto"` is the model's own.
        kwargs (*optional*):
            Further arguments.

    Returns:
        [`~transformers.PreTrainedModel`]

    Raises:
        `ValueError`: If under ZeRO-3 neither `dtype` nor the model's configuration says the precision.
    """
    config, before = {}, {}
    if is_deepspeed_zero3_enabled():
        config = deepspeed_config()
        if dtype in (None, "auto"):
            known = {key: kwargs[key] for key in WHERE if key in kwargs}
            dtype = (kwargs.get("config") or AutoConfig.from_pretrained(name, **known)).dtype
        if dtype is None:
            raise ValueError(f"The configuration of {name} does not say its precision: give it as `dtype`.")
        found = str(dtype).removeprefix("torch.")
        before = {key: config.get(key, {}) for key in ("bf16", "fp16")}
        config |= {"bf16": {"enabled": found == "bfloat16"}, "fp16": {"enabled": found == "float16"}}
    try:
        return model_class(name, **kwargs).from_pretrained(name, dtype=dtype, **kwargs)
    finally:
        config |= before


def model_class(name: str, **kwargs: Any) -> type:
    """
    The class to load a model by: the one that its configuration names, if that generates text.

    Args:
        name (`str`):
            The model.
        kwargs (*optional*):
            Further arguments of `from_pretrained`.

    Returns:
        `type`: A class of Transformers, such as `LlavaForConditionalGeneration`, or `AutoModelForCausalLM`, which also
        knows adapters, code that comes with a model, and models that were saved without their head.
    """
    if kwargs.get("trust_remote_code"):
        return AutoModelForCausalLM
    known = {key: kwargs[key] for key in WHERE if key in kwargs}
    try:
        names = (kwargs.get("config") or AutoConfig.from_pretrained(name, **known)).architectures
    except (OSError, ValueError):
        # The folder of an adapter, or nothing at all, which is told better where it is loaded.
        return AutoModelForCausalLM
    return architecture(names)


@dataclass
class ModelArguments:
    """
    Which model to load, and how. The names are those of TRL's [`~trl.ModelConfig`].

    Args:
        model_name_or_path (`str`, *optional*):
            Folder of the model, or its name on the Hub.
        model_revision (`str`, *optional*, defaults to `"main"`):
            Revision of the model on the Hub: a branch, a tag or a commit.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights; `"auto"` is the model's own.
        attn_implementation (`str`, *optional*):
            Attention to use, as in [`~transformers.PreTrainedModel.from_pretrained`].
    """

    _argument_group_name: ClassVar[str] = "The model"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder of the model, or its name on the Hub."}
    )
    model_revision: str = field(default="main", metadata={"help": "Revision on the Hub: a branch, a tag, a commit."})
    dtype: str | None = field(default="auto", metadata={"help": "Precision of the weights; auto is the model's own."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention to use, for example sdpa or flash_attention_2."}
    )


@dataclass
class QuantisedModelArguments(ModelArguments):
    """
    [`ModelArguments`] of a model that may be quantised by bitsandbytes. Unlearning then needs
    `update_target="adapter"`.

    Args:
        load_in_8bit (`bool`, *optional*, defaults to `False`):
            Whether to quantise the weights to 8 bits.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether to quantise the weights to 4 bits.
        bnb_4bit_quant_type (`str`, *optional*, defaults to `"nf4"`):
            `"nf4"` or `"fp4"`.
        use_bnb_nested_quant (`bool`, *optional*, defaults to `False`):
            Whether to quantise the constants of the quantisation too.
    """

    load_in_8bit: bool = field(default=False, metadata={"help": "Quantise to 8 bits; needs update_target=adapter."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantise to 4 bits; needs update_target=adapter."})
    bnb_4bit_quant_type: str = field(
        default="nf4", metadata={"help": "Kind of 4-bit number.", "choices": ["nf4", "fp4"]}
    )
    use_bnb_nested_quant: bool = field(
        default=False, metadata={"help": "Quantise the constants of the quantisation too."}
    )

    def quantisation(self) -> BitsAndBytesConfig | None:
        """
        What bitsandbytes is asked for, if anything.

        Raises:
            `ValueError`: If both 8 and 4 bits are asked for.
        """
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("`load_in_8bit` and `load_in_4bit` exclude each other: choose one.")
        if self.load_in_8bit:
            return BitsAndBytesConfig(load_in_8bit=True)
        if not self.load_in_4bit:
            return None
        return BitsAndBytesConfig(
            load_in_4bit=True,
            # bitsandbytes computes in a precision that has a name.
            bnb_4bit_compute_dtype="bfloat16" if self.dtype == "auto" else self.dtype,
            bnb_4bit_quant_type=self.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=self.use_bnb_nested_quant,
        )


def asked_to_shard() -> bool:
    """
    Whether `accelerate launch` asks for FSDP. accelerate itself, which would shard the probes too, forgets about it:
    the weights are sharded by Transformers, while they are loaded.
    """
    return os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"


def load_model(
    arguments: ModelArguments, name: str | None = None, sharded: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a model and its tokenizer.

    Args:
        arguments ([`ModelArguments`]):
            What to load and how.
        name (`str`, *optional*):
            Another model to load the same way.
        sharded (`bool`, *optional*, defaults to `False`):
            Whether to share the weights out over the processes (FSDP2).

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`

    Raises:
        `ValueError`: If no model is named.
        `FileNotFoundError`: If the name looks like a folder that is not there.
    """
    name = name or arguments.model_name_or_path
    if name is None:
        raise ValueError(NO_MODEL)
    # Names on the Hub have at most one slash; anything else that is not there is a mistyped folder.
    if not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"There is no model folder {name}.")
    kwargs: dict[str, Any] = {"revision": arguments.model_revision if name == arguments.model_name_or_path else "main"}
    loading = kwargs | {"dtype": arguments.dtype, "attn_implementation": arguments.attn_implementation}
    if isinstance(arguments, QuantisedModelArguments):
        loading["quantization_config"] = arguments.quantisation()
    if sharded and PartialState().num_processes > 1:
        # Not in all versions of Transformers that serve otherwise.
        from transformers.distributed import DistributedConfig

        loading["distributed_config"] = DistributedConfig(fsdp_size=PartialState().num_processes)
    return from_pretrained(name, **loading), AutoTokenizer.from_pretrained(name, **kwargs)
