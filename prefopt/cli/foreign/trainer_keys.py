"""Keys of ``transformers.TrainingArguments`` that are no more, or refused: LLaMA-Factory's too."""

from typing import Any

from prefopt.cli.foreign.conversion import Key, cannot, differs, nothing, same
from prefopt.migration import OLD_TRANSFORMERS_FIELDS, REFUSED, Gone

WARMUP = "below 1 it is a share of all steps, rounded up"


def of_gone(gone: Gone) -> Key:
    """Return the key of an argument that is gone.

    Examples:
        >>> of_gone(Gone("use b={value} instead", (None, 0))).harmless
        (None, None, 0)
    """
    advice = gone.advice.format(value="...")
    return nothing(advice) if gone.harmless is None else cannot(advice, *gone.harmless)


def _adafactor(value: Any) -> str:
    return "adafactor" if value else "adamw_torch"


TRAINER: dict[str, Key] = {
    **{name: of_gone(gone) for name, gone in (OLD_TRANSFORMERS_FIELDS | REFUSED).items()},
    "evaluation_strategy": same("eval_strategy"),
    "warmup_ratio": same("warmup_steps", WARMUP),
    "no_cuda": same("use_cpu"),
    "per_gpu_train_batch_size": same("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": same("per_device_eval_batch_size"),
    "push_to_hub_model_id": same("hub_model_id"),
    "push_to_hub_token": same("hub_token"),
    "adafactor": same("optim", read=_adafactor),
    "group_by_length": differs("", "rows are not padded, so they are drawn in any order"),
    "include_tokens_per_second": nothing("a measurement"),
    "include_inputs_for_metrics": nothing("there are no metrics of a script's own"),
    "logging_dir": nothing("where TensorBoard logs; set TENSORBOARD_LOGGING_DIR"),
    "use_liger_kernel": nothing("the LM head is chunked here for every loss"),
    "average_tokens_across_devices": nothing("means are over the examples of all devices"),
    "remove_unused_columns": nothing("columns that are not read are kept"),
    "do_predict": cannot("prefopt does not generate; use the saved model", False),
}
