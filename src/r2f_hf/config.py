"""The configuration of a Recover-to-Forget run."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .data.views import check_templates
from .decoders import check_decoder
from .gradients import check_min_fidelity
from .lookup import lookup
from .objectives.forget import FORGET_OBJECTIVES
from .objectives.retain import RETAIN_OBJECTIVES


@dataclass
class R2FConfig(TrainingArguments):
    r"""
    Configuration of the [`R2FTrainer`].

    All [`~transformers.TrainingArguments`] work as they do there. `per_device_train_batch_size` counts forget
    examples: a step takes `num_views` wordings of each and `retain_per_forget` retain examples beside it.

    Parameters:
        rank (`int`, *optional*, defaults to `16`):
            Rank of the LoRA probes. Higher ranks reconstruct more of the gradient; cost and memory grow linearly.
        target_modules (`str` or `list[str]`, *optional*, defaults to `"all-linear"`):
            Modules whose weights are changed, as in [`~peft.LoraConfig`]. Of a multimodal model `"all-linear"` is the
            part that reads text.
        exclude_modules (`str` or `list[str]`, *optional*):
            Modules to leave as they are, as in [`~peft.LoraConfig`]. Modules that are frozen (`requires_grad=False`)
            or share their weight with the embeddings are left as they are anyway, unless an adapter takes the updates.
        update_target (`str`, *optional*, defaults to `"weights"`):
            What takes the updates: the model's own `"weights"`, or an `"adapter"`, an ordinary LoRA adapter beside
            weights that stay as they are. Quantised models, and models with adapters of their own, need the latter.
        adapter_rank (`int`, *optional*, defaults to `64`):
            Rank of that adapter. What it cuts off a step is logged as `r2f/discarded_energy`.
        decoder (`str`, *optional*, defaults to `"spectral"`):
            Gradient decoder: `"spectral"`, `"tikhonov"`, or a folder or Hub repository of a saved one.
        held_out (`int`, *optional*, defaults to `2`):
            Rows of each probe that measure the reconstruction's error instead of contributing to it; at least 2, or 0.
        warm_probes (`bool`, *optional*, defaults to `True`):
            Whether probes follow the subspaces that a module's gradients have lain in so far.
        min_fidelity (`float`, *optional*):
            Least estimated cosine between a module's reconstruction and its full gradient. Off by default.
        on_low_fidelity (`str`, *optional*, defaults to `"skip"`):
            What to do with a module below `min_fidelity`: `"skip"` it in this step, so that the update is as much
            shorter, or `"stop"` the run with an error.
        forget_objective (`str`, *optional*, defaults to `"npo"`):
            `"ga"`, `"grad_diff"`, `"wga"`, `"npo"`, `"simnpo"` or `"tnpo"`.
        retain_objective (`str`, *optional*, defaults to `"nll"`):
            `"nll"`, `"kl"` or `"none"`.
        beta (`float`, *optional*):
            Inverse temperature of NPO and SimNPO (0.1 by default) and of TNPO (1 by default), exponent of WGA's
            weights (1 by default).
        gamma (`float`, *optional*, defaults to `0.0`):
            Margin of SimNPO.
        forget_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the forget loss.
        retain_weight (`float`, *optional*, defaults to `3.0`):
            Weight of the retain loss.
        retain_per_forget (`int`, *optional*):
            Retain examples in a step for each forget example: 1 by default, and 3 where nothing is spared. Forgetting
            takes few examples; bringing back what it took along takes many, but what is spared is not taken along.
        num_views (`int`, *optional*, defaults to `1`):
            Wordings of a forget example in a step. The original is the first; further ones come from `views_column`
            and `view_templates`, in turns where there are more than `num_views`. At an equal number of passes more
            examples in one wording do better than fewer in several (`benchmarks/views.py`).
        views_column (`str`, *optional*):
            Column of the forget set with a paraphrase of the prompt, or a list of them.
        view_templates (`list[str]`, *optional*):
            Texts with a `{prompt}` field.
        prompt_column (`str`, *optional*, defaults to `"question"`):
            Column of the prompt; `"none"` for plain text.
        completion_column (`str`, *optional*, defaults to `"answer"`):
            Column of the text that the loss is taken on.
        max_length (`int`, *optional*):
            Tokens of an example; longer ones are cut on the right. Without it an example longer than the model's
            context is refused.
        adaptive (`bool`, *optional*, defaults to `True`):
            Whether rows and columns of the reconstructed gradients are evened out by their running mean squares, as
            in Adafactor. Without it, take a smaller learning rate.
        spare_retained (`bool`, *optional*, defaults to `True`):
            Whether updates leave alone what modules make of the retain set's inputs, as far as they can (see
            [`~r2f_hf.updates.RetainedInputs`]), so that steps can be larger and fewer. Off without a
            `retain_objective`, as there is nothing to spare then.
        normalize_update (`bool`, *optional*, defaults to `True`):
            Whether the norm of a step in each module is set by `learning_rate` (times the schedule) alone. If `False`
            a step is the learning rate times the reconstructed gradient, evened out if it is `adaptive`, without what
            is spared, clipped to `max_grad_norm`.
        stop_check_steps (`int`, *optional*, defaults to `5`):
            With a holdout set, how often (in steps) to check whether the forget set is indistinguishable from it and
            the retain set is kept.
        on_nonfinite (`str`, *optional*, defaults to `"skip"`):
            What to do when a gradient is NaN or infinite: `"skip"` the step, or `"stop"` the run. Weights stay finite
            either way.
        keep_original (`bool`, *optional*, defaults to `True`):
            Whether to keep the weights that are about to change in the output folder, so that `r2f undo` can restore
            them. They still know what was forgotten; delete the folder `_undo` once that must not be.
        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            Whether to begin in an output folder that holds another run's result or checkpoints. One run's folder can
            always be resumed, or begun anew with the same settings.

    The parameters below have other defaults than in [`~transformers.TrainingArguments`]: `learning_rate` is the
    Frobenius norm of a step in each module, 0.6 by default and 0.15 where nothing is spared, `optim="sgd"` keeps no
    state for probes that are drawn anew each step, `remove_unused_columns` is off because the trainer builds its own
    batches, and `logging_steps` is 1.
    """

    learning_rate: float | None = field(
        default=None,
        metadata={"help": "Frobenius norm of a step in each module; 0.6, or 0.15 where nothing is spared."},
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
    update_target: str = field(default="weights", metadata={"help": "weights, or adapter: what takes the updates."})
    adapter_rank: int = field(default=64, metadata={"help": "Rank of the adapter that takes the updates."})
    decoder: str = field(default="spectral", metadata={"help": "Gradient decoder: a name, a folder or a repository."})
    held_out: int = field(default=2, metadata={"help": "Rows of each probe that measure the reconstruction's error."})
    warm_probes: bool = field(default=True, metadata={"help": "Whether probes follow the gradients seen so far."})
    min_fidelity: float | None = field(
        default=None, metadata={"help": "Least estimated cosine between reconstruction and full gradient."}
    )
    on_low_fidelity: str = field(
        default="skip", metadata={"help": "skip modules below min_fidelity, or stop the run."}
    )
    forget_objective: str = field(default="npo", metadata={"help": "ga, grad_diff, wga, npo, simnpo or tnpo."})
    retain_objective: str = field(default="nll", metadata={"help": "nll, kl or none."})
    beta: float | None = field(
        default=None, metadata={"help": "Inverse temperature: 0.1 of npo and simnpo, 1 of tnpo; exponent of wga: 1."}
    )
    gamma: float = field(default=0.0, metadata={"help": "Margin of SimNPO."})
    forget_weight: float = field(default=1.0, metadata={"help": "Weight of the forget loss."})
    retain_weight: float = field(default=3.0, metadata={"help": "Weight of the retain loss."})
    retain_per_forget: int | None = field(
        default=None,
        metadata={"help": "Retain examples in a step for each forget example; 1, or 3 where nothing is spared."},
    )
    num_views: int = field(default=1, metadata={"help": "Wordings of a forget example in a step."})
    views_column: str | None = field(default=None, metadata={"help": "Column with paraphrases of the prompt."})
    view_templates: list[str] | None = field(default=None, metadata={"help": "Texts with a {prompt} field."})
    prompt_column: str | None = field(
        default="question", metadata={"help": "Column of the prompt; none for plain text."}
    )
    completion_column: str = field(default="answer", metadata={"help": "Column that the loss is taken on."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of an example; longer ones are cut."})
    adaptive: bool = field(
        default=True, metadata={"help": "Whether rows and columns of an update are evened out, as in Adafactor."}
    )
    spare_retained: bool = field(
        default=True, metadata={"help": "Whether updates leave alone what modules make of the retain set's inputs."}
    )
    normalize_update: bool = field(
        default=True, metadata={"help": "Whether a step's norm is set by learning_rate alone."}
    )
    stop_check_steps: int = field(
        default=5, metadata={"help": "Steps between checks against the holdout set, if there is one."}
    )
    on_nonfinite: str = field(default="skip", metadata={"help": "skip the step, or stop the run."})
    keep_original: bool = field(
        default=True, metadata={"help": "Whether to keep the weights from before in the output folder, for r2f undo."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Whether to begin in an output folder that holds another run."}
    )

    def __post_init__(self):
        # Without a retain set there is nothing to spare.
        self.spare_retained = self.spare_retained and self.retain_objective != "none"
        if self.learning_rate is None:
            self.learning_rate = 0.6 if self.spare_retained else 0.15
        if self.retain_per_forget is None:
            self.retain_per_forget = 1 if self.spare_retained else 3
        super().__post_init__()
        if self.prompt_column == "none":
            self.prompt_column = None
        if self.target_modules == ["all-linear"]:
            # PEFT takes its shorthand as a string alone; from a command line everything comes as a list.
            self.target_modules = "all-linear"
        check_decoder(self.decoder)
        objective = lookup(FORGET_OBJECTIVES, self.forget_objective, "forget objective")
        if self.beta is None:
            self.beta = objective.beta
        lookup({**RETAIN_OBJECTIVES, "none": None}, self.retain_objective, "retain objective")
        lookup(dict.fromkeys(("weights", "adapter")), self.update_target, "update_target")
        for name in ("on_nonfinite", "on_low_fidelity"):
            lookup(dict.fromkeys(("skip", "stop")), getattr(self, name), name)
        check_templates(self.view_templates)
        for name in ("rank", "adapter_rank", "num_views", "retain_per_forget", "stop_check_steps", "beta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if not 0 <= self.held_out < self.rank:
            raise ValueError(f"`held_out` must be from 0 to `rank` - 1, got {self.held_out} with rank {self.rank}.")
        check_min_fidelity(self.min_fidelity, self.held_out)
        if self.num_views > 1 and self.views_column is None and not self.view_templates:
            raise ValueError(
                f"`num_views={self.num_views}` needs a `views_column` or `view_templates` to take views from."
            )
        if objective.needs_retain and self.retain_objective == "none":
            raise ValueError(
                f"`forget_objective={self.forget_objective!r}` is a difference with a retain loss; choose a "
                '`retain_objective`, or `forget_objective="ga"`.'
            )
