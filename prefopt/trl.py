"""TRL's trainers under their own names: a script changes ``trl`` to ``prefopt.trl`` and runs.

    from prefopt.trl import DPOConfig, DPOTrainer    # was: from trl import ...

``DPO``, ``KTO``, ``CPO`` and ``ORPO`` are here, each a configuration with TRL's fields and defaults
beside ours, and a ``PreferenceTrainer`` that takes it. A field means what it means in TRL; the
trainer prints which loss it uses, and which of the given fields act differently. Other names are
those of the installed trl (``ModelConfig``, ``ScriptArguments``, ``TrlParser``, ...).

As of TRL 1.16; ``docs/migration.md`` has every field.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from inspect import signature
from os import PathLike
from pathlib import PurePath
from typing import Any, ClassVar

from torch import nn
from transformers.utils import is_torch_bf16_gpu_available

from prefopt.config import LOSS_OPTIONS, PreferenceConfig
from prefopt.data.prepare import NO_ROOM
from prefopt.data.report import SetAside
from prefopt.migration import REFUSED, checks_arguments, is_harmless
from prefopt.objective import Objective, Term, parse_objective
from prefopt.training.trainer import PreferenceTrainer
from prefopt.training.weights import train_in_float32

__all__ = [
    "CPOConfig",
    "CPOTrainer",
    "DPOConfig",
    "DPOTrainer",
    "KTOConfig",
    "KTOTrainer",
    "ORPOConfig",
    "ORPOTrainer",
]

# Fields that change nothing of what is computed here, whatever they hold, and why.
WITHOUT_EFFECT = {
    "pad_to_multiple_of": "rows are not padded",
    "use_liger_kernel": "the LM head is chunked for every loss",
    "liger_kernel_config": "the LM head is chunked for every loss",
    "eval_accumulation_steps": "evaluation keeps a few numbers of each row",
    "eval_use_gather_object": "rewards of all processes are gathered as they are",
    "average_tokens_across_devices": "means are over the examples of all devices",
    "label_names": "what is compared is read from the columns",
    "length_column_name": "rows are not grouped by length",
    "label_smoothing_factor": "as in TRL's trainers; label_smoothing is the loss's",
    "generate_during_eval": "nothing is generated while training",
    "max_completion_length": "in TRL it acts on encoder-decoder models only",
    "padding_value": "rows are not padded",
}
# Options that TRL reads only at one value of another, each with its default.
_OTHERS_OPTIONS = (
    ("ref_model_mixup_alpha", 0.6, "sync_ref_model", True),
    ("ref_model_sync_steps", 512, "sync_ref_model", True),
    ("f_alpha_divergence_coef", 0.5, "f_divergence_type", "alpha_divergence"),
)
# TRL's loss types of CPOConfig, which are other losses in DPOConfig.
_CPO_LOSSES = {
    "sigmoid": "cpo",
    "hinge": "cpo_hinge",
    "ipo": "cpo_ipo",
    "simpo": "simpo",
    "alphapo": "alphapo",
}


@checks_arguments
@dataclass
class _TRLConfig(PreferenceConfig):
    """What the configurations have in common: TRL's defaults where they are not ours."""

    gradient_checkpointing: bool = field(
        default=True,
        metadata={"help": "Compute activations again in the backward pass; saves memory."},
    )

    log_token_metrics: bool = field(
        default=True,
        metadata={"help": "Log entropy, mean_token_accuracy and logits/* too; off is faster."},
    )

    _TAKES_UNUSED: ClassVar[bool] = True

    # How TRL calls the trainer, and the fields that choose its loss.
    method: ClassVar[str]
    _chosen_by: ClassVar[tuple[str, ...]] = ("loss_type",)

    def __post_init__(self) -> None:
        """Take what changes nothing, then check as ``PreferenceConfig`` does."""
        if self.bf16 is None:  # on, but where TRL raises: without a GPU, if not told to do without
            self.bf16 = not self.fp16 and (self.use_cpu or is_torch_bf16_gpu_available())
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")  # its name since transformers 5.20
            if getattr(self, new, False) is None:
                setattr(self, new, getattr(self, old))
        self.keeps_end = self.truncation_mode == "keep_end"
        if self.keeps_end:
            self.truncation_mode = None
        self._differences: list[str] = []
        for name, why in WITHOUT_EFFECT.items():
            value = getattr(self, name, None)
            gone = REFUSED.get(name)
            if gone is None:
                is_set = value is not None and value is not False
            else:
                is_set = not is_harmless(gone, value)
            if is_set:
                self._differences.append(f"{name} has no effect: {why}")
            if is_set and gone is not None:
                setattr(self, name, self.__dataclass_fields__[name].default)
        if vars(self)["train_sampling_strategy"] == "group_by_length":
            self._differences.append("rows come in random order: they are not padded")
            self.train_sampling_strategy = "random"
        for name, default, other, read_at in _OTHERS_OPTIONS:
            if getattr(self, other) != read_at and getattr(self, name) not in (None, default):
                needed = f"{other}={read_at!r}"
                self._differences.append(f"{name} has no effect without {needed}, nor in TRL")
                setattr(self, name, None)
        if self.ld_alpha is not None and self.loss_type in ("sft", ["sft"]):
            self._differences.append("ld_alpha has no effect on 'sft', nor in TRL")
            self.ld_alpha = None
        super().__post_init__()

    def reason_for(self, data_kinds: frozenset[str]) -> str:
        """Return which fields chose the loss."""
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._chosen_by)
        return f"{self.method}Config: {given}"

    @property
    def differences(self) -> list[str]:
        """What of the given fields acts otherwise than in TRL, a sentence each."""
        known = {name for term in self.objective.terms for name in term.loss.hyperparameters}
        unused = [
            f"{name}={getattr(self, name)} has no effect: no loss of these has it, nor in TRL"
            for name, option in LOSS_OPTIONS.items()
            if option not in known
            and name not in self._chosen_by
            and getattr(self, name) not in (None, self._SPELT_OUT.get(name))
        ]
        return [*self._differences, *unused, *self._differences_of_loss()]

    def _differences_of_loss(self) -> list[str]:
        return []


@checks_arguments
@dataclass
class DPOConfig(_TRLConfig):
    """TRL's ``DPOConfig``: its fields and defaults; any loss of ours is a ``loss_type`` too."""

    method = "DPO"
    _SPELT_OUT: ClassVar[dict[str, Any]] = {**PreferenceConfig._SPELT_OUT, "beta": 0.1}

    loss_type: list[str] | str | None = field(
        default_factory=lambda: ["sigmoid"],
        metadata={"help": "Losses, each by TRL's name or ours; their sum is minimised."},
    )
    beta: float | None = field(
        default=0.1, metadata={"help": "Reward per nat of log-ratio, of all losses that have one."}
    )
    label_smoothing: float | None = field(
        default=0.0, metadata={"help": "Probability that a label is wrong."}
    )

    def objective_for(self, data_kinds: frozenset[str]) -> Objective:
        """Return the losses, a name of TRL's with its meaning there."""
        found = super().objective_for(data_kinds)
        return Objective(tuple(self._as_trl(term) for term in found.terms))

    def _as_trl(self, term: Term) -> Term:
        """Return a loss as TRL has it: a sum where ours is a mean, and no moving threshold."""
        if term.loss.name == "sppo" and "sppo_hard" in str(self.loss_type):
            return replace(term, weight=2 * term.weight)
        if term.loss.name == "bco_pair":
            return replace(term, hyperparameters={"shift": False} | term.hyperparameters)
        return term

    def _differences_of_loss(self) -> list[str]:
        found, names = [], [term.loss.name for term in self.objective.terms]
        if self.label_smoothing and "dpo" in names:
            found.append("label_smoothing makes 'sigmoid' conservative DPO; TRL ignores it there")
        if self.use_weighting:
            found.append("WPO's weights are at most 1, as in the authors' code; TRL has no limit")
        if self.f_divergence_type not in (None, "reverse_kl"):
            found.append("rewards are those of the divergence; TRL logs beta times log-ratio")
        return found


@checks_arguments
@dataclass
class KTOConfig(_TRLConfig):
    """TRL's ``KTOConfig``: its fields and defaults; any loss on labels is a ``loss_type`` too.

    Raises:
        ValueError: If the loss compares completions.
    """

    method = "KTO"

    loss_type: list[str] | str | None = field(
        default="kto", metadata={"help": "kto, apo_zero_unpaired, or another loss on labels."}
    )
    beta: float | None = field(default=0.1, metadata={"help": "Reward per nat of log-ratio."})
    train_sampling_strategy: str = field(
        default="sequential", metadata={"help": "'sequential', or 'random'."}
    )
    desirable_weight: float | None = field(
        default=1.0, metadata={"help": "Weight of desirable completions."}
    )
    undesirable_weight: float | None = field(
        default=1.0, metadata={"help": "Weight of undesirable completions."}
    )

    def __post_init__(self) -> None:
        """Refuse losses of other trainers."""
        super().__post_init__()
        others = [it.loss.name for it in self.objective.terms if it.loss.data_kind == "paired"]
        if others:
            raise ValueError(
                f"KTOConfig: loss_type={self.loss_type!r} is {' and '.join(others)}, which "
                "compares two completions; use DPOConfig for that, or 'kto' here"
            )

    def _differences_of_loss(self) -> list[str]:
        if not self.objective.needs_kl:
            return []
        return [
            "KTO's KL estimate is that of the whole optimiser step, its mismatched completions "
            "from other rows by a fixed rule; TRL's is that of a micro-batch and its neighbours"
        ]


@checks_arguments
@dataclass
class _ConfigWithoutReference(_TRLConfig):
    """What the configurations of CPO and ORPO have in common."""

    max_completion_length: int | None = field(
        default=None, metadata={"help": "Taken; of encoder-decoder models."}
    )
    generate_during_eval: bool = field(default=False, metadata={"help": "Taken; without effect."})
    is_encoder_decoder: bool | None = field(
        default=None, metadata={"help": "Taken; such models cannot be trained."}
    )

    def _objective(self, names: str, options: dict[str, Any]) -> Objective:
        """Return losses with these hyper-parameters, and those of ``loss_kwargs``."""
        given: dict[str, Any] = dict(self.loss_kwargs or {})  # type: ignore[arg-type] # read
        return parse_objective(names, None, options | given, self._loss_options)

    def _differences_of_loss(self) -> list[str]:
        return [
            "BOS is the tokenizer's to add and a chat ends as its template ends it; TRL's CPO and "
            "ORPO add BOS before each prompt and EOS behind each completion"
        ]


@checks_arguments
@dataclass
class CPOConfig(_ConfigWithoutReference):
    """TRL's ``CPOConfig``, ``loss_type`` with its meaning there.

    Raises:
        ValueError: If the loss is none of CPO's, or ``alpha`` does not go with it.
    """

    method = "CPO"
    _chosen_by = ("loss_type", "cpo_alpha")

    loss_type: list[str] | str | None = field(
        default="sigmoid",
        metadata={"help": "The loss without reference.", "choices": list(_CPO_LOSSES)},
    )
    beta: float | None = field(default=0.1, metadata={"help": "Reward per nat of log-prob."})
    label_smoothing: float | None = field(
        default=0.0, metadata={"help": "Probability that a label is wrong."}
    )
    cpo_alpha: float = field(
        default=1.0, metadata={"help": "Weight of the chosen completion's likelihood."}
    )
    simpo_gamma: float = field(
        default=0.5, metadata={"help": "Reward by which simpo's chosen completion should lead."}
    )
    alpha: float = field(default=0.0, metadata={"help": "How AlphaPO's reward is bent; 0: not."})

    def objective_for(self, data_kinds: frozenset[str]) -> Objective:
        """Return CPO's loss and its likelihood term; the kinds do not matter."""
        loss_type = self.loss_type.lower() if isinstance(self.loss_type, str) else ""
        if loss_type not in _CPO_LOSSES:
            raise ValueError(
                f"CPOConfig: loss_type must be one of {', '.join(_CPO_LOSSES)}, got "
                f"{self.loss_type!r}; other losses are those of DPOConfig, KTOConfig or "
                "prefopt.PreferenceConfig"
            )
        name = _CPO_LOSSES[loss_type]
        weight = 0.0 if name == "alphapo" else self.cpo_alpha
        if self.alpha and name not in ("simpo", "alphapo"):
            raise ValueError(
                f"CPOConfig: alpha={self.alpha} bends the reward of 'simpo' and 'alphapo' alone "
                f"(of summed log-probs it overflows), and loss_type is {self.loss_type!r}"
            )
        if name == "simpo" and self.alpha:
            name = "alphapo"
        options: dict[str, Any] = {"beta": self.beta}
        if name in ("simpo", "alphapo"):
            options["gamma"] = self.simpo_gamma
        if name == "alphapo":
            options["alpha"] = self.alpha
        if self.label_smoothing and name not in ("cpo_hinge", "cpo_ipo"):
            options["label_smoothing"] = self.label_smoothing
        return self._objective(f"{name} + {weight}*sft" if weight else name, options)

    def _differences_of_loss(self) -> list[str]:
        found = super()._differences_of_loss()
        if self.cpo_alpha and self.gradient_accumulation_steps > 1:
            found.append("the likelihood term is a mean over the tokens of the optimiser step")
        return found


@checks_arguments
@dataclass
class ORPOConfig(_ConfigWithoutReference):
    """TRL's ``ORPOConfig``: ``beta`` is the weight of the odds ratio, lambda in the paper."""

    method = "ORPO"
    _chosen_by = ("beta",)

    loss_type: list[str] | str | None = field(
        default="orpo", metadata={"help": "Only 'orpo'; TRL has no such field."}
    )
    beta: float | None = field(
        default=0.1, metadata={"help": "Weight of the odds-ratio term; the paper's lambda."}
    )
    padding_value: int | None = field(default=None, metadata={"help": "Taken; without effect."})

    def objective_for(self, data_kinds: frozenset[str]) -> Objective:
        """Return ORPO's loss; the kinds do not matter."""
        if str(self.loss_type).lower() != "orpo":
            raise ValueError(
                f"ORPOConfig: loss_type={self.loss_type!r}, and only 'orpo' is ORPO; for others "
                "use the configuration of their trainer"
            )
        return self._objective("orpo", {"lambda_": self.beta})

    def _differences_of_loss(self) -> list[str]:
        return [
            *super()._differences_of_loss(),
            "ORPO's likelihood term is the mean over the chosen completion, then over pairs; TRL's "
            "is a mean over all tokens of the batch, those of the prompts too",
        ]


class _TRLTrainer(PreferenceTrainer):
    """What the trainers have in common, and what TRL's users read from one."""

    config: ClassVar[type[_TRLConfig]]
    _fit_dtype = staticmethod(train_in_float32)

    def __init__(
        self, model: Any, ref_model: Any = None, args: Any = None, *rest: Any, **named: Any
    ) -> None:
        method = self.config.method
        if args is None:
            args = self.config(f"{_name_of(model)}-{method}")
        elif not isinstance(args, self.config):
            raise TypeError(
                f"{method}Trainer of prefopt.trl takes args=prefopt.trl.{method}Config(...), got "
                f"{type(args).__module__}.{type(args).__name__}: import both from prefopt.trl"
            )
        self._tag_names = ("trl", "prefopt", method.lower())
        is_module = isinstance(ref_model, nn.Module)
        self._given_reference = weakref.ref(ref_model) if is_module else lambda: None
        super().__init__(model, ref_model, args, *rest, **named)
        self._check_cut()
        kinds = [kind for report in self.data_reports.values() for kind in report.kinds]
        of_pairs = ["a row is a pair, both of whose completions are in a batch; TRL makes two rows"]
        for difference in args.differences + of_pairs * (method == "KTO" and "paired" in kinds):
            self._run.say(f"prefopt.trl: {difference}")

    def _check_cut(self) -> None:
        """Raise where TRL's ``keep_end`` would cut other tokens than are cut here."""
        if not self.args.keeps_end or self.max_length is None:
            return
        cut = {
            name: report.cut_rows + report.set_aside.get(NO_ROOM, SetAside(0, ())).count
            for name, report in self.data_reports.items()
        }
        found = [f"{count:,} rows of {name}" for name, count in cut.items() if count]
        if found or not cut:
            raise ValueError(
                f"truncation_mode='keep_end' would cut the beginning of what is longer than "
                f"max_length={self.max_length} ({' and '.join(found) or 'rows of a stream'}), and "
                "here the end of completions is cut; raise max_length, or shorten prompts in the "
                "data, or take 'keep_start'"
            )

    @property
    def ref_model(self) -> nn.Module | None:
        """The reference, or None where no model is kept for it.

        Log-probs that are computed once need none, nor does a policy with an adapter, which is
        switched off to score. A model that was given is here as long as its owner keeps it.
        """
        live = None if self.references is None else self.references.model
        return self._given_reference() if live is None else live

    @property
    def aux_loss_enabled(self) -> bool:
        """Whether a mixture of experts' load-balancing loss is added."""
        return self.load_balancing_loss is not None


class DPOTrainer(_TRLTrainer):
    """TRL's ``DPOTrainer``: a ``PreferenceTrainer`` of a ``DPOConfig``."""

    config = DPOConfig
    __signature__ = signature(PreferenceTrainer)


class KTOTrainer(_TRLTrainer):
    """TRL's ``KTOTrainer``: a ``PreferenceTrainer`` of a ``KTOConfig``; it takes pairs too."""

    config = KTOConfig
    __signature__ = signature(PreferenceTrainer)


class _TrainerWithoutReference(_TRLTrainer):
    """A trainer that takes its arguments in the order of TRL's CPO and ORPO."""

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[[], Any] | None = None,
        callbacks: Any = None,
        optimizers: Any = (None, None),
        preprocess_logits_for_metrics: Any = None,
        peft_config: Any = None,
        compute_metrics: Any = None,
        **others: Any,
    ) -> None:
        if model_init is not None:
            if model is not None:
                raise ValueError("model and model_init are both given: leave one out")
            model = model_init()
        super().__init__(
            model,
            None,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            compute_metrics,
            callbacks,
            optimizers,
            peft_config=peft_config,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            **others,
        )


class CPOTrainer(_TrainerWithoutReference):
    """TRL's ``CPOTrainer``: a ``PreferenceTrainer`` of a ``CPOConfig``."""

    config = CPOConfig


class ORPOTrainer(_TrainerWithoutReference):
    """TRL's ``ORPOTrainer``: a ``PreferenceTrainer`` of an ``ORPOConfig``."""

    config = ORPOConfig


def _name_of(model: Any) -> str:
    """Return what TRL calls a model in the name of its output folder."""
    name = model if isinstance(model, str | PathLike) else getattr(model.config, "name_or_path", "")
    return PurePath(name).name or type(model).__name__


def __getattr__(name: str) -> Any:
    """Return what else a script takes from TRL, which is imported only then."""
    if name.startswith("_"):
        raise AttributeError(f"module 'prefopt.trl' has no attribute {name!r}")
    return getattr(import_module("trl"), name)
