"""What a preference run is told: ``transformers.TrainingArguments`` and what is ours.

Every field of TRL's ``DPOConfig`` and ``KTOConfig`` is taken with its meaning, or refused with what
to use instead (``prefopt.migration`` lists them all), so that a script changes two imported names
and runs.
"""

from copy import copy, deepcopy
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from prefopt.config_checks import (
    ADAPTER,
    check_choices,
    check_moving_reference,
    check_options_of_optimiser,
    check_schedule,
    check_types,
    read_json,
    read_object,
    read_parallelism,
    refuse_unsupported,
)
from prefopt.engine.attention import BACKENDS
from prefopt.migration import checks_arguments
from prefopt.objective import LossOptions, Objective, parse_objective

# Options that are hyper-parameters of losses, by the field that sets them.
LOSS_OPTIONS = {
    "beta": "beta",
    "label_smoothing": "label_smoothing",
    "discopop_tau": "tau",
    "desirable_weight": "desirable_weight",
    "undesirable_weight": "undesirable_weight",
}


def _loss_option(name: str, **default: Any) -> Any:
    """Return the field of an option of every loss, described as in ``LossOptions``."""
    described = LossOptions.__dataclass_fields__[name]
    return field(**{"default": described.default, **default}, metadata=described.metadata)


@checks_arguments
@dataclass
class PreferenceConfig(TrainingArguments):  # type: ignore[misc] # transformers is untyped
    """Arguments of a ``PreferenceTrainer``; fields are described by their ``help``.

    Raises:
        ValueError: When made, if a loss is unknown, an option does not belong to the loss, a value
            is out of range, or an argument is one that TRL or transformers had once.
        TypeError: If there is no such argument.

    Examples:
        >>> PreferenceConfig("out", loss_type="ipo", beta=0.2, report_to="none").objective.name
        'ipo'
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "loss_kwargs",
    ]

    # Whether options that no loss has are passed over.
    _TAKES_UNUSED: ClassVar[bool] = False

    # TRL's defaults: scripts and YAML files spell them out where the loss has no such option, too.
    _SPELT_OUT: ClassVar[dict[str, float]] = {
        "label_smoothing": 0.0,
        "discopop_tau": 0.05,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
    }

    learning_rate: float = field(
        default=1e-6, metadata={"help": "Initial learning rate of the optimiser."}
    )
    logging_steps: float = field(
        default=10,
        metadata={"help": "Log every so many optimiser steps; below 1, a share of all steps."},
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Mixed precision in bfloat16. Default: on where CUDA supports it."},
    )

    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Log the last finite loss in place of one that is not. Off by default: it "
            "hides what happened, and makes a GPU wait at every step."
        },
    )

    loss_type: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "Loss by name, a sum such as 'dpo + 0.2*sft', a list with loss_weights, one "
            'for each kind of rows ({"paired": "dpo", "unpaired": "kto"}), or a function in a file '
            "of yours: own.py:mine. Default: dpo on pairs and rankings, kto on unpaired data. "
            "`prefopt losses` lists them."
        },
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for each loss of a list."}
    )
    loss_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Hyper-parameters of the loss by name, as a JSON object; under a loss's name, "
            'for that loss of a sum only: {"tau": 0.1} or {"sft": {"normalize": "sequence"}}.'
        },
    )
    beta: float | None = field(
        default=None,
        metadata={"help": "Reward per nat of log-ratio. Default: that of the loss."},
    )
    label_smoothing: float | None = field(
        default=None,
        metadata={"help": "Probability that a label is wrong (cDPO). Default: that of the loss."},
    )
    desirable_weight: float | None = field(
        default=None, metadata={"help": "KTO's weight of desirable completions (default 1)."}
    )
    undesirable_weight: float | None = field(
        default=None, metadata={"help": "KTO's weight of undesirable completions (default 1)."}
    )
    discopop_tau: float | None = field(
        default=None, metadata={"help": "DiscoPOP's temperature (TRL's name of its `tau`)."}
    )

    length_normalize: bool = _loss_option("length_normalize")
    margin_scale: float = _loss_option("margin_scale")
    beta_schedule: str = _loss_option("beta_schedule")
    beta_final: float | None = _loss_option("beta_final")
    ld_alpha: float | None = _loss_option("ld_alpha", default=None)
    f_divergence_type: str | None = _loss_option("f_divergence_type", default=None)
    f_alpha_divergence_coef: float | None = _loss_option("f_alpha_divergence_coef", default=None)
    use_weighting: bool = _loss_option("use_weighting")

    max_length: int | None = field(
        default=1024,
        metadata={"help": "Tokens of prompt + completion; longer completions are cut at the end."},
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that prepare the dataset."}
    )
    pad_token: str | None = field(
        default=None, metadata={"help": "Padding token. Default: the tokenizer's, else its EOS."}
    )

    reference: str = field(
        default="auto",
        metadata={
            "help": "Where reference log-probs come from. 'auto': nowhere if the loss needs none; "
            "cached, or live for streams. 'cached': computed once before training, after which no "
            "reference model stays in memory. 'live': computed at each step. 'adapter:<path>': as "
            "'auto', and the reference is that saved adapter on the policy's base model.",
        },
    )
    reference_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the store of reference log-probs, which all runs share. Default: "
            "the environment variable PREFOPT_CACHE, else prefopt in the user's cache folder."
        },
    )
    sync_ref_model: bool = field(
        default=False,
        metadata={"help": "Let the reference follow the policy (TR-DPO); it is then live."},
    )
    ref_model_mixup_alpha: float | None = field(
        default=None,
        metadata={"help": "Share of the policy when the reference follows it (default 0.6)."},
    )
    ref_model_sync_steps: int | None = field(
        default=None,
        metadata={"help": "Optimiser steps after which the reference follows (default 512)."},
    )
    precompute_ref_log_probs: bool = field(
        default=False, metadata={"help": "TRL's name for reference='cached'."}
    )
    precompute_ref_batch_size: int | None = field(
        default=None,
        metadata={"help": "Examples per forward pass while caching. Default: by a token budget."},
    )

    layout: str = field(
        default="auto",
        metadata={
            "help": "How tokens are laid out. 'auto': completions share their prompt where the "
            "model allows it. 'shared_prefix' requires it, 'padded' gives each completion a row.",
            "choices": ["auto", "shared_prefix", "padded"],
        },
    )
    attn_backend: str = field(
        default="auto",
        metadata={
            "help": "What computes attention in rows that share prompts. 'auto': the fastest that "
            "GPU and model allow. 'varlen' or 'flex' (CUDA) or 'segments' (anywhere) require one; "
            "'padded' is layout='padded'.",
            "choices": list(BACKENDS),
        },
    )
    router_aux_loss_coef: float | None = field(
        default=None,
        metadata={
            "help": "Weight of a mixture of experts' load-balancing loss beside the preference "
            "loss; 0 for none. Default: that of the model's configuration."
        },
    )
    check_first_batch: bool = field(
        default=False,
        metadata={
            "help": "Before training, score the first batch of the training set also text by text, "
            "with the model's plain forward pass; a difference is an error."
        },
    )
    non_finite_steps: int = field(
        default=0,
        metadata={
            "help": "How many optimiser steps of a run may be left out because their loss or "
            "gradient norm is NaN or infinite; one more stops it. Each writes its rows to "
            "output_dir, and counts as a step of the schedule."
        },
    )
    log_token_metrics: bool = field(
        default=False,
        metadata={
            "help": "Log `entropy`, `mean_token_accuracy`, `logits/chosen` and `logits/rejected` "
            "too, as TRL does; they need a separate pass over the logits."
        },
    )
    diagnostics: bool = field(
        default=False,
        metadata={
            "help": "Log signs of a run going wrong (`diagnostics/*`), and warn once for each: "
            "likelihood displacement, length bias, over-optimisation, over-fitting, drift, "
            "saturated pairs."
        },
    )
    log_throughput: bool = field(
        default=True,
        metadata={
            "help": "Log `tokens_per_second`, `mfu` (on a CPU `matmul_share`), `peak_memory_gib` "
            "and where the time of a step goes (`timing_s/*`)."
        },
    )
    profile_steps: int = field(
        default=0,
        metadata={
            "help": "Write a trace of so many optimiser steps, by torch's profiler, to output_dir."
        },
    )
    log_ratios: bool = field(
        default=False,
        metadata={
            "help": "Log `log_ratios/*`: by how many nats completions are more likely than under "
            "the reference. The same scale for every loss; one without a reference is compared "
            "with the start of the policy."
        },
    )
    sample_prompts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Prompts that the policy answers while it trains, printed and logged beside "
            "its answers at the start: texts, or a file (one prompt per line in .txt, or rows "
            "with prompt or messages)."
        },
    )
    sample_every: int | None = field(
        default=None,
        metadata={"help": "Optimiser steps between such answers. Default: a tenth of the run."},
    )
    sample_tokens: int = field(
        default=128, metadata={"help": "Maximum tokens of such an answer; the likeliest are taken."}
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Maximum tokens of one forward pass. A batch with more is cut into parts, "
            "which bounds memory and changes no gradient; a longer example is a part by itself."
        },
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Set every dropout of policy and reference to 0."}
    )
    activation_offloading: bool = field(
        default=False,
        metadata={"help": "Keep activations saved for the backward pass in CPU memory."},
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of `from_pretrained` where the model is an id or a path (JSON)."
        },
    )
    allow_missing_weights: bool = field(
        default=False,
        metadata={
            "help": "Accept a checkpoint that lacks weights of the model (they start at random), "
            "or has weights that the model has no place for."
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run model and tokenizer code that ships with a model."}
    )

    padding_free: bool = field(
        default=False, metadata={"help": "TRL's; accepted: rows are never padded here."}
    )
    truncation_mode: str | None = field(
        default=None,
        metadata={"help": "TRL's; only 'keep_start' (completions are cut at the end)."},
    )
    pad_to_multiple_of: int | str | None = field(
        default=None, metadata={"help": "TRL's; refused: rows are not padded."}
    )

    def __post_init__(self) -> None:
        """Check every field against the others, and the loss's options against the loss."""
        check_types(self)
        check_schedule(self)
        if self.bf16 is None:
            cuda = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            self.bf16 = cuda and not self.fp16 and not self.use_cpu
        for name in ("loss_kwargs", "model_init_kwargs"):
            read_json(self, name)
        copies_wait = self.accelerator_config is not None  # or as that says
        read_parallelism(self)
        super().__post_init__()
        # Pinned memory is for copies to an accelerator; without one torch warns of it.
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False
        elif self.dataloader_pin_memory and not copies_wait:
            # The next batch is laid out and copied while the accelerator computes.
            self.accelerator_config.non_blocking = True
        check_options_of_optimiser(self)
        refuse_unsupported(self)
        _ = self._loss_options  # raises for a value out of its range
        check_choices(self)
        if self.precompute_ref_log_probs:
            if self.reference == "live":
                raise ValueError("precompute_ref_log_probs=True contradicts reference='live'")
            if self.reference == "auto":
                self.reference = "cached"
        check_moving_reference(self)
        if self.sample_prompts is None and self.sample_every is not None:
            raise ValueError("sample_every needs sample_prompts: what the policy is asked")
        if self.loss_type is None and self.loss_weights is not None:
            raise ValueError("loss_weights needs a loss_type: a list of as many losses")
        self._check_loss()

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled, into ``training_args.bin``, which is uploaded: no token."""
        return {**vars(self), "hub_token": None}

    def __copy__(self) -> "PreferenceConfig":
        """Return a copy, with the token."""
        made = object.__new__(type(self))
        made.__dict__.update(vars(self))
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> "PreferenceConfig":
        """Return a copy of all that it holds, with the token."""
        made = copy(self)
        made.__dict__.update(deepcopy(vars(self), memo))
        return made

    @property
    def reference_mode(self) -> str:
        """When reference log-probs are computed: ``auto``, ``cached`` or ``live``."""
        if not self.reference.startswith(ADAPTER):
            return self.reference
        return "cached" if self.precompute_ref_log_probs else "auto"

    @property
    def objective(self) -> Objective:
        """The losses to minimise; ``dpo`` where none is named."""
        return self.objective_for(frozenset({"paired"}))

    def objective_for(self, data_kinds: frozenset[str]) -> Objective:
        """Return the losses to minimise on data of these kinds.

        Args:
            data_kinds: Kinds in the training data; they matter only where no loss is named.

        Raises:
            ValueError: If an option does not belong to the loss.
        """
        if self.loss_type is not None:
            return self._parse(self.loss_type)
        is_kto = data_kinds == {"unpaired"} or self._weighs_labels
        return self._parse("kto" if is_kto else "dpo")

    @property
    def _weighs_labels(self) -> bool:
        """Whether a script was written for KTO, also where its data are pairs."""
        return (self.desirable_weight, self.undesirable_weight) != (None, None)

    def reason_for(self, data_kinds: frozenset[str]) -> str:
        """Return why ``objective_for`` chose what it did; nothing where losses are named."""
        if self.loss_type is not None:
            return ""
        if self._weighs_labels:
            return "no loss_type is given, and desirable_weight is KTO's"
        return f"no loss_type is given, and the data are {' and '.join(sorted(data_kinds))}"

    def _check_loss(self) -> None:
        """Check the loss that is named; where none is, options must suit dpo or kto."""
        try:
            _ = self.objective
        except ValueError:
            if self.loss_type is not None:
                raise
            try:
                self._parse("kto")
            except ValueError:
                pass
            else:
                return
            raise

    def _parse(self, loss_type: Any) -> Objective:
        if isinstance(loss_type, str) and loss_type.lstrip().startswith("{"):
            loss_type = read_object("loss_type", loss_type)
        options: dict[str, Any] = dict(self.loss_kwargs or {})  # type: ignore[arg-type] # read
        terms = parse_objective(loss_type, self.loss_weights).terms
        known = {name for term in terms for name in term.loss.hyperparameters}
        for name, option in LOSS_OPTIONS.items():
            value, is_known = getattr(self, name), option in known
            if value is None or (not is_known and value == self._SPELT_OUT.get(name)):
                continue
            if name == "beta" and not is_known and "orpo" in {t.loss.name for t in terms}:
                raise ValueError(
                    f"beta={value} of TRL's ORPOConfig is lambda_ here: use loss_kwargs="
                    f"{{'lambda_': {value}}} instead (hyper-parameters: orpo: lambda_)"
                )
            if not is_known and self._TAKES_UNUSED:
                continue
            if option in options and options[option] != value:
                raise ValueError(
                    f"{option} is given twice: {name}={value} and loss_kwargs[{option!r}]="
                    f"{options[option]}; choose one"
                )
            options[option] = value
        return parse_objective(loss_type, self.loss_weights, options, self._loss_options)

    @property
    def _loss_options(self) -> LossOptions:
        """Options of every loss."""
        given = {item.name: getattr(self, item.name) for item in fields(LossOptions)}
        return LossOptions(**{name: value for name, value in given.items() if value is not None})
