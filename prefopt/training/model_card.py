"""The README.md of a trained model: how to use it, with what it was trained, whom to cite.

What a card says can be read by anyone, so a folder of the author's machine is named without its
path.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from yaml import safe_dump

import prefopt
from prefopt.training.adapter import is_peft
from prefopt.training.model import loading_options
from prefopt.training.papers import bibtex_of
from prefopt.training.saved import LoadingCode, loading_code

# Where peft's kinds are known by more than their own name.
_ADAPTER_NAMES = {"LORA": "LoRA", "IA3": "IA³", "ADALORA": "AdaLoRA", "VERA": "VeRA"}

_ASKING_CHAT = """\
messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(model.device)"""
_ASKING_TEXT = """\
inputs = tokenizer("The capital of France is", return_tensors="pt").to(model.device)"""
_ANSWERING = """\
output = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))"""


@dataclass(frozen=True)
class CardDetails:
    """What a card says that a run does not know by itself.

    Attributes:
        model_name: The model's name; None for its id on the Hub, or its folder's name.
        datasets: Ids on the Hub, folders or files that it was trained on.
        tags: Tags beside those of the run.
        base_model: What it was made from; None for what the model says.
        metadata: Further entries of the metadata, such as ``license``.
    """

    model_name: str | None = None
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    base_model: str | None = None
    metadata: Mapping[str, Any] | None = None

    def updated(
        self,
        model_name: str | None = None,
        dataset_name: str | Sequence[str] | None = None,
        tags: str | Sequence[str] | None = None,
        finetuned_from: str | None = None,
        dataset: str | Sequence[str] | None = None,
        tasks: str | None = None,
        **metadata: Any,
    ) -> "CardDetails":
        """Return these details with those that are given, under TRL's names or transformers'."""
        dataset_name, metadata["pipeline_tag"] = dataset_name or dataset, tasks
        more = {name: value for name, value in metadata.items() if value is not None}
        return replace(
            self,
            model_name=model_name or self.model_name,
            datasets=_listed(dataset_name) or self.datasets,
            tags=tuple(dict.fromkeys([*self.tags, *_listed(tags)])),
            base_model=finetuned_from or self.base_model,
            metadata={**(self.metadata or {}), **more},
        )


def _listed(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def write_model_card(folder: str | Path, trainer: Any) -> None:
    """Write ``README.md`` into the folder of a saved model."""
    Path(folder, "README.md").write_text(model_card(trainer), encoding="utf-8")


def model_card(trainer: Any) -> str:
    """Return the text of a model card, with the metadata that the Hub reads.

    Args:
        trainer: What trained; its ``card_details`` say what it does not know.
    """
    details: CardDetails = trainer.card_details
    base = details.base_model or getattr(trainer.model.config, "_name_or_path", "") or ""
    parts = (
        ["---", *_metadata(trainer, details, base), "---", "", f"# {_name(trainer, details)}", ""],
        [_first_sentence(trainer, details, base)],
        _use(trainer, base),
        _objective(trainer),
        _settings(trainer),
        _evaluation(trainer.state.log_history),
        _papers(trainer),
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def shared_name(name: str) -> str:
    """Return an id as it is; of a folder or file of this machine, its name without the path.

    Examples:
        >>> shared_name("trl-lib/ultrafeedback_binarized"), shared_name("/data/pairs.jsonl")
        ('trl-lib/ultrafeedback_binarized', 'pairs.jsonl')
    """
    return Path(name).expanduser().absolute().name if is_local(name) else name


def is_local(name: str) -> bool:
    """Whether a name is of this machine, and not one that the Hub may have."""
    return name.startswith(("/", ".", "~", "\\")) or name.count("/") > 1 or Path(name).exists()


def _name(trainer: Any, details: CardDetails) -> str:
    hub_id = trainer.args.hub_model_id
    own = hub_id.split("/")[-1] if hub_id else Path(trainer.args.output_dir).absolute().name
    return details.model_name or own


def _metadata(trainer: Any, details: CardDetails, base: str) -> list[str]:
    losses = (term.loss.name for term in trainer.objective.terms)
    own_tags = (*trainer._tag_names, "preference-optimisation", *losses)
    values: dict[str, Any] = {"library_name": "peft" if is_peft(trainer.model) else "transformers"}
    if base and not is_local(base):
        values["base_model"] = base
    named = [name for name in details.datasets if not is_local(name)]
    if named:
        values["datasets"] = named
    values |= {"tags": list(dict.fromkeys([*own_tags, *details.tags]))}
    values |= details.metadata or {}
    written: str = safe_dump(values, sort_keys=False, allow_unicode=True)
    return written.splitlines()


def _first_sentence(trainer: Any, details: CardDetails, base: str) -> str:
    named = f"[{base}](https://huggingface.co/{base})" if base and not is_local(base) else ""
    named = named or (f"`{shared_name(base)}`" if base else "")
    if is_peft(trainer.model):
        kind = str(getattr(_adapter(trainer.model).peft_type, "value", "")) or "peft"
        what = f"A {_ADAPTER_NAMES.get(kind, kind)} adapter of {named or 'a language model'}"
    else:
        what = f"A fine-tuned version of {named}" if named else "A language model"
    on = ", ".join(map(_data_name, details.datasets)) or "preference data"
    return f"{what}, trained on {on} with prefopt {prefopt.__version__}."


def _data_name(name: str) -> str:
    if is_local(name):
        return f"`{shared_name(name)}`"
    return f"[{name}](https://huggingface.co/datasets/{name})"


def _adapter(model: Any) -> Any:
    return next(iter(model.peft_config.values()))


# Use ----------------------------------------------------------------------------------------------


def _use(trainer: Any, base: str) -> list[str]:
    """Return the code that loads the model, from where it will be, and asks it."""
    place = getattr(trainer, "hub_model_id", None) or trainer.args.hub_model_id
    place = place or Path(trainer.args.output_dir).absolute().name
    options = loading_options(trainer.args)
    code = loading_code(
        trainer.model,
        place,
        {name: value for name, value in options.items() if not _is_path(value)},
    )
    lines = [_without_paths(line) for line in _program(trainer, place, code).splitlines()]
    note = []
    if is_peft(trainer.model) and base and is_local(base):
        note = [
            "",
            f"The base model was a folder called `{shared_name(base)}`: put the path of your copy.",
        ]
    return ["", "## Use it", "", "```python", *lines, "```", *note]


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and is_local(value)


def _program(trainer: Any, place: str, code: LoadingCode) -> str:
    tokenizer = trainer.processing_class
    if not hasattr(tokenizer, "convert_ids_to_tokens"):  # it reads images too
        return str(code)
    asking = _ASKING_CHAT if getattr(tokenizer, "chat_template", None) else _ASKING_TEXT
    trust = ", trust_remote_code=True" if loading_options(trainer.args)["trust_remote_code"] else ""
    return "\n".join(
        [
            "from transformers import AutoTokenizer",
            *code.imports,
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({place!r}{trust})",
            *code.lines,
            asking,
            _ANSWERING,
        ]
    )


def _without_paths(line: str) -> str:
    """Return a line of code in which each name of a folder is without its path."""
    before, call, rest = line.partition(".from_pretrained('")
    name, quote, after = rest.partition("'")
    return f"{before}{call}{shared_name(name)}{quote}{after}" if call else line


# Training -----------------------------------------------------------------------------------------


def _objective(trainer: Any) -> list[str]:
    lines = ["", "## Objective", "", f"`{trainer.objective.name}`", ""]
    for term in trainer.objective.terms:
        values = {**term.loss.hyperparameters, **term.hyperparameters, **term.options.chosen()}
        settings = ", ".join(f"{name}={value}" for name, value in values.items())
        lines.append(
            f"- **{term.loss.name}**{f' ({settings})' if settings else ''}: {term.loss.summary}. "
            f"{term.loss.source}"
        )
    return lines


def _settings(trainer: Any) -> list[str]:
    args = trainer.args
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    schedule, optimiser = (getattr(it, "value", it) for it in (args.lr_scheduler_type, args.optim))
    lines = [
        f"- steps: {trainer.state.global_step}, epochs: {trainer.state.epoch or 0:.2f}",
        f"- examples per optimiser step: {batch}",
        f"- learning rate: {args.learning_rate:g}, schedule: {schedule}, optimiser: {optimiser}",
        f"- max_length: {trainer.max_length} tokens, layout: {trainer.scorer.layout}",
        f"- seed: {args.seed}",
        f"- transformers {transformers.__version__}, torch {torch.__version__}",
    ]
    if is_peft(trainer.model):
        lines.insert(3, f"- adapter: {_adapter_settings(_adapter(trainer.model))}")
    return ["", "## Training", "", *lines]


def _adapter_settings(config: Any) -> str:
    names = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "target_modules")
    values = {name: getattr(config, name, None) for name in names}
    targets = values["target_modules"]
    if targets is not None and not isinstance(targets, str):
        values["target_modules"] = " ".join(sorted(targets))
    said = (f"{name}={value}" for name, value in values.items() if value)
    return ", ".join(said) or str(config.peft_type)


def _evaluation(history: Sequence[Mapping[str, Any]]) -> list[str]:
    steps = [entry["step"] for entry in history if any(key.startswith("eval_") for key in entry)]
    if not steps:
        return []
    last = [entry for entry in history if entry.get("step") == steps[-1]]  # one for each dataset
    values = {name: value for entry in last for name, value in entry.items()}
    rows = [
        f"| {name.removeprefix('eval_')} | {value:.4g} |"
        for name, value in values.items()
        if name.startswith("eval_") and isinstance(value, int | float)
    ]
    title = f"## Evaluation after {steps[-1]} steps"
    return ["", title, "", "| metric | value |", "|---|---|", *rows]


def _papers(trainer: Any) -> list[str]:
    entries = dict.fromkeys(bibtex_of(term.loss) for term in trainer.objective.terms)
    known = [entry for entry in entries if entry is not None]
    return ["", "## Papers", "", "```bibtex", *known, "```"] if known else []
