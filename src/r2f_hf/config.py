"""The configuration of a Recover-to-Forget run."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from .data.views import check_templates
from .decoders import check_decoder
from .gradients import check_min_fidelity
from .lookup import lookup
from .objectives import FORGET_OBJECTIVES, RETAIN_OBJECTIVES, ForgetObjective, RetainObjective, build_objective
from .settings import check_kinds


# R2F's own options in the groups that its documentation and `r2f unlearn --help` show them in.
GROUPS: dict[str, tuple[str, ...]] = {
    "Parameters that control the step": (
        "learning_rate",
        "rank",
        "target_modules",
        "exclude_modules",
        "update_target",
        "adapter_rank",
        "protect_retain",
        "spectrum_damping",
        "simulated_relearning",
        "min_fidelity",
        "on_bad_gradient",
    ),
    "Parameters that control the losses": (
        "forget_objective",
        "forget_objective_kwargs",
        "retain_objective",
        "retain_objective_kwargs",
        "forget_weight",
        "retain_weight",
    ),
    "Parameters that control the data": (
        "prompt_column",
        "completion_column",
        "max_length",
        "window_overlap",
        "chat_template_kwargs",
        "system_prompt",
        "retain_per_forget",
        "num_views",
        "views_column",
        "view_templates",
    ),
    "Parameters that control the evaluation": ("eval_suite", "eval_suite_data", "eval_forget_split"),
    "Parameters that control the run": ("stop_check_steps", "keep_original", "overwrite_output_dir"),
    "Parts of the method that can be switched off or replaced": (
        "decoder",
        "held_out",
        "warm_probes",
        "adaptive",
        "normalize_update",
    ),
}

POSITIVE = (
    "learning_rate",
    "rank",
    "adapter_rank",
    "max_length",
    "num_views",
    "retain_per_forget",
    "stop_check_steps",
)


@dataclass
class R2FConfig(TrainingArguments):
    r"""
    Configuration of the [`R2FTrainer`].

    It takes all fields of [`~transformers.TrainingArguments`]. `docs/training_arguments.md` says which work as they do
    there, which have no effect by design, and which are refused. `per_device_train_batch_size` counts forget examples:
    in addition, a step takes `num_views` wordings of each, and `retain_per_forget` retain examples.

    Parameters:
        > Parameters that control the step

        learning_rate (`float`, *optional*):
            Frobenius norm of a step in each module. Defaults to 0.6, and to 0.15 without `protect_retain`.
        rank (`int`, *optional*, defaults to `16`):
            Rank of the LoRA probes. Higher ranks reconstruct more of the gradient; cost and memory grow linearly.
        target_modules (`str` or `list[str]`, *optional*, defaults to `"all-linear"`):
            Modules whose weights are changed, as in [`~peft.LoraConfig`]. In a multimodal model `"all-linear"` is the
            part that reads text.
        exclude_modules (`str` or `list[str]`, *optional*):
            Modules to leave as they are, as in [`~peft.LoraConfig`]. Modules that are frozen (`requires_grad=False`)
            or share their weight with the embeddings are left as they are anyway, unless an adapter takes the updates.
        update_target (`str`, *optional*, defaults to `"weights"`):
            What takes the updates: the model's own `"weights"`, or an `"adapter"`, an ordinary LoRA adapter next to
            weights that stay as they are. Quantised models, and models with adapters of their own, need the latter.
        adapter_rank (`int`, *optional*, defaults to `64`):
            Rank of that adapter. What it cuts off per step is logged as `r2f/discarded_energy`.
        protect_retain (`bool`, *optional*, defaults to `True`):
            Whether updates leave alone what modules make of the retain set's inputs, as far as they can (see
            [`~r2f_hf.updates.RetainedInputs`]), so that steps can be larger and fewer. It is off without a
            `retain_objective`, since there is nothing to protect then.
        spectrum_damping (`float`, *optional*, defaults to `0.0`):
            `k`, from 0 to 1: a singular value `S` of a module's gradient becomes `S^(1-2k)`. With 0.5 all directions
            of a gradient weigh the same. Where forget rows share directions, a few of them then bring back less of the
            others. Each step forgets less.
        simulated_relearning (`float`, *optional*, defaults to `0.0`):
            Norm of a step of fine-tuning on forget rows that precedes each step, in each module. The losses are those
            of the model after it, so that the run forgets what fine-tuning would bring back. Nothing of it is
            written. Try 0.03. Larger ones destroy the model that the losses see. It costs a forward and a backward
            pass over as many forget rows as a batch has, in one view. While `ignorance` lifts tokens, only every
            second step has it.
        min_fidelity (`float`, *optional*):
            Least estimated cosine between a module's reconstruction and its full gradient. Off by default.
        on_bad_gradient (`str`, *optional*, defaults to `"skip"`):
            What to do if a gradient is NaN or infinite, or a module is below `min_fidelity`. `"skip"` leaves the
            weights of all modules, or of this one, as they are in this step; `"stop"` ends the run with an error.
            Weights stay finite either way.

        > Parameters that control the losses

        forget_objective (`str`, *optional*, defaults to `"npo"`):
            An entry of [`~r2f_hf.objectives.FORGET_OBJECTIVES`]: `"ga"`, `"grad_diff"`, `"wga"`, `"satimp"`, `"npo"`,
            `"simnpo"`, `"tnpo"`, `"dpo"`, `"altpo"`, `"idk"`, `"flat"`, `"jensun"`, `"undial"`, `"ce_u"`, `"shred"`,
            `"duet"`, `"inverted_hinge"`, `"margin"`, `"bs_t"`, `"bs_s"`, `"rmu"`, `"adaptive_rmu"`, `"ignorance"` or
            `"pdu"`.
        forget_objective_kwargs (`dict` or `str`, *optional*):
            Options of the forget objective, such as `{"beta": 0.5}`; as text, in JSON.
        retain_objective (`str`, *optional*, defaults to `"nll"`):
            An entry of [`~r2f_hf.objectives.RETAIN_OBJECTIVES`], `"nll"`, `"kl"`, `"jensen_shannon"` or
            `"hidden_states"`; or `"none"`.
        retain_objective_kwargs (`dict` or `str`, *optional*):
            Options of the retain objective, such as `{"k": 128}`; as text, in JSON.
        forget_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the forget loss.
        retain_weight (`float`, *optional*, defaults to `3.0`):
            Weight of the retain loss.

        > Parameters that control the data

        prompt_column (`str`, *optional*):
            Column of the question; `"none"` for plain text. By default each set's format is recognised by its columns:
            `messages`; `prompt` and `completion`; `question` and `answer`; or `text`.
        completion_column (`str`, *optional*):
            Column of the answer, or of the text, where the format is not to be recognised.
        max_length (`int`, *optional*):
            Tokens of an example; longer ones are cut on the right. Without it an example longer than the model's
            context is refused. Texts are cut into windows of this length, or of the model's context.
        window_overlap (`int`, *optional*, defaults to `0`):
            Tokens that a window of a text shares with the one before. The loss is taken on each token once.
        chat_template_kwargs (`dict` or `str`, *optional*):
            Arguments of the chat template, such as `{"enable_thinking": false}` or a fixed `date_string`; as text, in
            JSON.
        system_prompt (`str`, *optional*):
            A system message in front of every conversation that has none.
        retain_per_forget (`int`, *optional*):
            Retain examples per forget example in a step. Defaults to 1, and to 3 without `protect_retain`: forgetting
            takes few examples, and bringing back what it took along takes many.
        num_views (`int`, *optional*, defaults to `1`):
            Wordings of a forget example in a step. The original is the first; further ones come from `views_column`
            and `view_templates`, in turns where there are more than `num_views`. At an equal number of passes more
            examples in one wording do better than fewer in several (`benchmarks/views.py`).
        views_column (`str`, *optional*):
            Column of the forget set with a paraphrase of the prompt, or a list of them.
        view_templates (`list[str]`, *optional*):
            Texts with a `{prompt}` field.

        > Parameters that control the evaluation

        eval_suite (`str`, *optional*):
            A suite of [`SUITES`], such as `"tofu"`, to run in each evaluation in addition to the probabilities of the
            forget, retain and holdout sets. Its metrics are `eval_<suite>_<metric>`, for example
            `eval_tofu_truth_ratio`. It has no gold there: `r2f evaluate` compares with one.
        eval_suite_data (`str`, *optional*):
            Folder or Hub dataset of the suite's rows. Defaults to the suite's name on the Hub.
        eval_forget_split (`str`, *optional*):
            Forget set of the suite, such as `"forget05"`. Defaults to the suite's first.

        > Parameters that control the run

        stop_check_steps (`int`, *optional*, defaults to `5`):
            With a holdout set, how often (in steps) to check whether the forget set is no more likely than it and the
            retain set is kept. With `ignorance` each check also corrects its target.
        keep_original (`bool`, *optional*, defaults to `True`):
            Whether to keep the weights that are about to change in the output folder, so that `r2f undo` can restore
            them. They still know what was forgotten: delete the folder `_undo` once nobody may restore it.
        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            Whether to begin in an output folder that holds another run's result or checkpoints. One run's folder can
            always be resumed, or begun anew with the same settings.

        > Parts of the method that can be switched off or replaced

        decoder (`str`, *optional*, defaults to `"spectral"`):
            Gradient decoder: `"spectral"`, `"tikhonov"`, or a folder or Hub repository of a saved one.
        held_out (`int`, *optional*, defaults to `2`):
            Rows of each probe that measure the reconstruction's error instead of contributing to it; at least 2, or 0.
        warm_probes (`bool`, *optional*, defaults to `True`):
            Whether probes are drawn along the subspaces that a module's gradients have lain in so far.
        adaptive (`bool`, *optional*, defaults to `True`):
            Whether rows and columns of the reconstructed gradients are rescaled by their running mean squares, as in
            Adafactor. Without it, take a smaller learning rate.
        normalize_update (`bool`, *optional*, defaults to `True`):
            Whether only `learning_rate` (times the schedule) sets the norm of a step in each module. If `False`, a
            step is the learning rate times the reconstructed gradient, rescaled and protected as above, and clipped to
            `max_grad_norm`.

    The parameters below have other defaults than in [`~transformers.TrainingArguments`]: `learning_rate` (see above),
    `optim="sgd"`, which keeps no state for probes that are drawn anew each step, `remove_unused_columns=False`, since
    the trainer builds its own batches, and `logging_steps=1`.

    Raises:
        `ValueError`: For a setting that cannot work, before any model is loaded.
    """

    learning_rate: float | None = field(
        default=None,
        metadata={"help": "Frobenius norm of a step in each module; 0.6, or 0.15 without protect_retain."},
    )
    optim: str = field(default="sgd", metadata={"help": "Optimizer of the probes; SGD keeps no state."})
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "Off: the trainer builds its own batches."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Log every X updates steps."})

    rank: int = field(default=16, metadata={"help": "Rank of the LoRA probes."})
    target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Modules whose weights are changed, as in PEFT."}
    )
    exclude_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules to leave as they are, as in PEFT."}
    )
    update_target: str = field(
        default="weights", metadata={"help": "What takes the updates.", "choices": ["weights", "adapter"]}
    )
    adapter_rank: int = field(default=64, metadata={"help": "Rank of the adapter that takes the updates."})
    protect_retain: bool = field(
        default=True, metadata={"help": "Whether updates leave alone what modules make of the retain set's inputs."}
    )
    spectrum_damping: float = field(
        default=0.0, metadata={"help": "From 0 to 1: how far the leading directions of a gradient are damped."}
    )
    simulated_relearning: float = field(
        default=0.0,
        metadata={"help": "Norm of the step of fine-tuning that the losses see the model after; 0 is none."},
    )
    min_fidelity: float | None = field(
        default=None, metadata={"help": "Least estimated cosine between reconstruction and full gradient."}
    )
    on_bad_gradient: str = field(
        default="skip",
        metadata={
            "help": "What to do if a gradient is NaN, infinite, or below min_fidelity.",
            "choices": ["skip", "stop"],
        },
    )

    forget_objective: str = field(
        default="npo", metadata={"help": "What is minimised on the forget set.", "choices": list(FORGET_OBJECTIVES)}
    )
    forget_objective_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Options of the forget objective, as JSON: {"beta": 0.5}.'}
    )
    retain_objective: str = field(
        default="nll",
        metadata={"help": "What is minimised on the retain set.", "choices": [*RETAIN_OBJECTIVES, "none"]},
    )
    retain_objective_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Options of the retain objective, as JSON: {"k": 128}.'}
    )
    forget_weight: float = field(default=1.0, metadata={"help": "Weight of the forget loss."})
    retain_weight: float = field(default=3.0, metadata={"help": "Weight of the retain loss."})

    prompt_column: str | None = field(
        default=None, metadata={"help": "Column of the question; none for plain text. Recognised by default."}
    )
    completion_column: str | None = field(
        default=None, metadata={"help": "Column that the loss is taken on. Recognised by default."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Tokens of an example; longer ones are cut."})
    window_overlap: int = field(default=0, metadata={"help": "Tokens that windows of a long text share."})
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Arguments of the chat template, as JSON: {"enable_thinking": false}.'}
    )
    system_prompt: str | None = field(default=None, metadata={"help": "System message of every conversation."})
    retain_per_forget: int | None = field(
        default=None,
        metadata={"help": "Retain examples per forget example in a step; 1, or 3 without protect_retain."},
    )
    num_views: int = field(default=1, metadata={"help": "Wordings of a forget example in a step."})
    views_column: str | None = field(default=None, metadata={"help": "Column with paraphrases of the prompt."})
    view_templates: list[str] | None = field(default=None, metadata={"help": "Texts with a {prompt} field."})

    eval_suite: str | None = field(default=None, metadata={"help": "A suite to run in each evaluation, such as tofu."})
    eval_suite_data: str | None = field(default=None, metadata={"help": "Folder or Hub dataset of the suite's rows."})
    eval_forget_split: str | None = field(default=None, metadata={"help": "Forget set of the suite."})

    stop_check_steps: int = field(
        default=5, metadata={"help": "Steps between checks against the holdout set, if there is one."}
    )
    keep_original: bool = field(
        default=True, metadata={"help": "Whether to keep the weights from before in the output folder, for r2f undo."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to begin in an output folder that holds another run."}
    )

    decoder: str = field(default="spectral", metadata={"help": "Gradient decoder: a name, a folder or a repository."})
    held_out: int = field(default=2, metadata={"help": "Rows of each probe that measure the reconstruction's error."})
    warm_probes: bool = field(
        default=True, metadata={"help": "Whether probes are drawn along the subspaces of past gradients."}
    )
    adaptive: bool = field(
        default=True, metadata={"help": "Whether rows and columns of an update are rescaled, as in Adafactor."}
    )
    normalize_update: bool = field(
        default=True, metadata={"help": "Whether only learning_rate sets the norm of a step."}
    )

    def __post_init__(self):
        check_kinds(self, _hints(), {"optim": OptimizerNames})
        # Without a retain set there is nothing to protect.
        self.protect_retain = self.protect_retain and self.retain_objective != "none"
        if self.learning_rate is None:
            self.learning_rate = 0.6 if self.protect_retain else 0.15
        if self.retain_per_forget is None:
            self.retain_per_forget = 1 if self.protect_retain else 3
        # What a config file without a tracker often has. TrainingArguments would look for a tracker of that name.
        self.report_to = "none" if self.report_to is None else self.report_to
        super().__post_init__()
        if self.target_modules == ["all-linear"]:
            # PEFT takes its shorthand only as a string; from a command line everything comes as a list.
            self.target_modules = "all-linear"
        for name in ("forget_objective_kwargs", "retain_objective_kwargs", "chat_template_kwargs"):
            setattr(self, name, parse_kwargs(name, getattr(self, name)))
        forget, _ = self.build_objectives()
        check_decoder(self.decoder)
        for name, choices in (("update_target", ("weights", "adapter")), ("on_bad_gradient", ("skip", "stop"))):
            lookup(dict.fromkeys(choices), getattr(self, name), name)
        check_templates(self.view_templates)
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        if not 0 <= self.spectrum_damping <= 1:
            raise ValueError(f"`spectrum_damping` must be from 0 to 1, got {self.spectrum_damping}.")
        if not 0 <= self.simulated_relearning < math.inf:
            raise ValueError(f"`simulated_relearning` must be 0 or more, got {self.simulated_relearning}.")
        if self.window_overlap < 0:
            raise ValueError(f"`window_overlap` must be 0 or more, got {self.window_overlap}.")
        if not 0 <= self.held_out < self.rank:
            raise ValueError(f"`held_out` must be from 0 to `rank` - 1, got {self.held_out} with rank {self.rank}.")
        check_min_fidelity(self.min_fidelity, self.held_out)
        if self.num_views > 1 and self.views_column is None and not self.view_templates:
            raise ValueError(
                f"`num_views={self.num_views}` needs a `views_column` or `view_templates` to take views from."
            )
        if forget.needs_retain and self.retain_objective == "none":
            raise ValueError(
                f"`forget_objective={self.forget_objective!r}` is only defined together with a retain loss. Choose a "
                '`retain_objective`, such as "nll", or another `forget_objective`, such as "npo".'
            )

    def build_objectives(self) -> tuple[ForgetObjective, RetainObjective | None]:
        """
        The forget and the retain objective, with their options.

        Raises:
            `ValueError`: For a name or an option that does not exist, or a value that is not allowed.
        """
        forget = build_objective(
            FORGET_OBJECTIVES, self.forget_objective, self.forget_objective_kwargs or {}, "forget objective"
        )
        if self.retain_objective == "none":
            return forget, None
        # "none" is added here so that the error lists it too.
        lookup({**RETAIN_OBJECTIVES, "none": None}, self.retain_objective, "retain objective")
        kwargs = self.retain_objective_kwargs or {}
        return forget, build_objective(RETAIN_OBJECTIVES, self.retain_objective, kwargs, "retain objective")


@functools.cache
def _hints() -> dict[str, Any]:
    """The annotations of all fields, read once."""
    return get_type_hints(R2FConfig)


def parse_kwargs(name: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """Options as a dictionary; on a command line they come as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f'`{name}` is not JSON: {error}. It looks like {{"beta": 0.5}}.') from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f'`{name}` must be options by name, such as {{"beta": 0.5}}, got {value!r}.')
    return value
