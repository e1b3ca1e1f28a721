"""
The private parts of other libraries that R2F uses, and why.

A release of such a library may rename or remove any of them without notice. So `pyproject.toml` caps the minor
versions. `tests/test_compat.py` asserts that every name below still exists, and that the package uses no other private
name. An entry can go as soon as there is a public way.
"""

from __future__ import annotations

from typing import NamedTuple


class PrivateName(NamedTuple):
    """
    A name that is not public.

    Args:
        owner (`str`):
            The module that has the name, and the class in it.
        name (`str`):
            The private name.
        checked (`str`):
            The latest version of the library that it was checked on.
        why (`str`):
            What R2F needs it for.
        upstream (`str`, *optional*):
            A discussion of a public way, where there is one.
    """

    owner: str
    name: str
    checked: str
    why: str
    upstream: str | None = None


_TRAINER, _MODEL = "transformers.trainer:Trainer", "transformers.modeling_utils:PreTrainedModel"

PRIVATE_NAMES = (
    # transformers
    PrivateName(_TRAINER, "_get_num_items_in_batch", "5.24.0", "three counts per batch in place of one"),
    PrivateName(_TRAINER, "_save", "5.24.0", "the model behind the probes is saved, not the probes"),
    PrivateName(_TRAINER, "_save_checkpoint", "5.24.0", "checkpoints count only once they are whole"),
    PrivateName(_TRAINER, "_load_from_checkpoint", "5.24.0", "the model behind the probes is loaded"),
    PrivateName(_TRAINER, "_load_best_model", "5.24.0", "the model behind the probes is loaded"),
    PrivateName(_TRAINER, "_get_output_dir", "5.24.0", "the folder of a hyperparameter trial's checkpoints"),
    PrivateName(_TRAINER, "_train_batch_size", "5.24.0", "rows that accelerate adds to an epoch's last batch"),
    PrivateName(_MODEL, "_is_stateful", "5.24.0", "recurrent models take padding into their state"),
    PrivateName(_MODEL, "_hf_peft_config_loaded", "5.24.0", "adapters that Transformers itself has loaded"),
    PrivateName(_MODEL, "should_save_on_this_rank", "5.24.0", "the first process of each node saves the model"),
    PrivateName(_MODEL, "is_distributed_loading_by_transformers", "5.24.0", "weights that are sharded while loading"),
    PrivateName("transformers.configuration_utils:PreTrainedConfig", "_name_or_path", "5.24.0", "a model's folder"),
    PrivateName(
        "transformers.modeling_utils",
        "remove_tied_weights_from_state_dict",
        "5.24.0",
        "refuses before training what could not be saved after it",
    ),
    # accelerate
    PrivateName("accelerate.accelerator:Accelerator", "_is_accelerate_prepared", "1.15.0", "a model is wrapped anew"),
    # peft
    PrivateName("peft.tuners.lora.layer", "LoraVariant", "0.21.2", "gradients of a pair without its forward pass"),
    PrivateName("peft.tuners.lora.layer:LoraLayer", "lora_variant", "0.21.2", "where a variant is put in place"),
    PrivateName(
        "peft.tuners.lora.layer:LoraLayer", "cast_input_dtype_enabled", "0.21.2", "inputs are kept as they are"
    ),
    PrivateName("peft.tuners.lora.layer", "ParamWrapper", "0.21.2", "pairs on parameters, which are no probes"),
    PrivateName("peft.tuners.tuners_utils:BaseTunerLayer", "adapter_layer_names", "0.21.2", "what a model carries"),
    PrivateName(
        "peft.utils.transformers_weight_conversion",
        "convert_peft_config_for_transformers",
        "0.21.2",
        "which modules of a mixture PEFT takes for its experts",
    ),
    PrivateName("peft.utils.other", "get_pattern_key", "0.21.2", "the scaling of a module in a saved adapter"),
    # torch
    PrivateName("torch:Tensor", "_version", "2.13.0", "whether inputs have changed in place since they were read"),
    PrivateName("torch", "_foreach_copy_", "2.13.0", "many copies in one launch"),
    PrivateName("torch.ops:mkldnn", "_is_mkldnn_bf16_supported", "2.13.0", "whether a CPU computes in bf16"),
    # argparse, by way of trl's parser
    PrivateName("argparse:ArgumentParser", "_actions", "3.11", "the options that a recipe may name"),
    PrivateName("argparse:ArgumentParser", "_optionals", "3.11", "the order of groups in the help"),
    PrivateName("argparse:ArgumentParser", "_positionals", "3.11", "the order of groups in the help"),
    PrivateName("argparse:ArgumentParser", "_action_groups", "3.11", "the order of groups in the help"),
    PrivateName("argparse:_ArgumentGroup", "_group_actions", "3.11", "the order of groups in the help"),
    # huggingface_hub
    PrivateName("huggingface_hub:PyTorchModelHubMixin", "_save_pretrained", "2.4.0", "no pickle, and the record"),
    PrivateName("huggingface_hub:PyTorchModelHubMixin", "_from_pretrained", "2.4.0", "a pickle is never read"),
    PrivateName("huggingface_hub:PyTorchModelHubMixin", "_hub_mixin_config", "2.4.0", "the decoder's options"),
    # deepspeed
    PrivateName("deepspeed.runtime.zero.partition_parameters", "ds_tensor", "0.19.8", "this process's piece"),
    PrivateName("deepspeed.runtime.zero.partition_parameters", "ds_shape", "0.19.8", "the shape of the whole"),
    PrivateName("deepspeed.runtime.zero.partition_parameters", "ds_numel", "0.19.8", "the size of the whole"),
    PrivateName("deepspeed.runtime.zero.partition_parameters", "ds_id", "0.19.8", "whether ZeRO-3 has a parameter"),
    PrivateName(
        "deepspeed.runtime.zero.partition_parameters", "ds_zero_partition_rank", "0.19.8", "which piece it is"
    ),
    PrivateName("deepspeed.utils.tensor_fragment", "_hp_mapping", "0.19.8", "whether ZeRO-2 keeps the gradient"),
    PrivateName("deepspeed.runtime.zero.stage3", "empty_partition_cache", "0.19.8", "what backward has left whole"),
)
