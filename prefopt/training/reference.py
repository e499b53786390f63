"""Which reference a run has: chosen when the trainer is made, recorded in checkpoints, resumed."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from prefopt.config import ADAPTER, PreferenceConfig
from prefopt.data.collate import PreferenceCollator
from prefopt.engine import Scorer
from prefopt.objective import Objective
from prefopt.reference import (
    BaseModel,
    FillOptions,
    Fingerprint,
    InitialPolicy,
    MovingCopy,
    MovingPolicy,
    NamedAdapter,
    OtherModel,
    Processes,
    References,
    ResumedReference,
    Source,
    adapter_starts_as_identity,
    default_folder,
    open_database,
    trains_only_adapters,
)
from prefopt.reference.references import origin_facts
from prefopt.reference.sources import loaded_from
from prefopt.training.evaluation import gather_objects
from prefopt.training.model import (
    check_reference_tokenizer,
    is_peft,
    load_reference,
    reference_options,
)

# What a checkpoint says of the reference, and the weights of one that moves.
RECORD_FILE = "prefopt_reference.json"
WEIGHTS_FILE = "prefopt_reference.safetensors"
_STATE_FILE = "trainer_state.json"  # of transformers; where it is, training can go on


class RunReference(Trainer):  # type: ignore[misc] # transformers is untyped
    """A ``transformers.Trainer`` that knows the reference of its run."""

    args: PreferenceConfig
    objective: Objective
    scorer: Scorer
    _tokenizer: Any
    _console: Console
    _scorer_of: Callable[[Any], Scorer]
    _references: References | None
    _moving: MovingCopy | None = None

    def _check_reference(self, args: PreferenceConfig, ref_model: Any) -> None:
        """Raise where a reference is given in two ways, or to a loss that cannot use it."""
        adapter = args.reference.startswith(ADAPTER)
        if ref_model is not None and adapter:
            raise ValueError(
                f"the reference is given twice: ref_model and reference={args.reference!r}; leave "
                "one of them out"
            )
        if self.objective.needs_divergences and args.reference_mode == "cached":
            raise ValueError(
                f"the loss {self.objective.name!r} compares all that policy and reference predict "
                "at each token, and a cache holds log-probs of the tokens that follow; use "
                "reference='live' (which 'auto' is for this loss), without precompute_ref_log_probs"
            )
        if self.objective.needs_reference:
            return
        for given, what in (
            (ref_model is not None, "ref_model was given"),
            (args.reference != "auto", f"reference={args.reference!r} was asked for"),
            (args.sync_ref_model, "sync_ref_model=True was asked for"),
        ):
            if given:
                raise ValueError(
                    f"{what}, but the loss {self.objective.name!r} uses no reference; leave it out"
                )

    # Choosing it ----------------------------------------------------------------------------------

    def _set_up_reference(self, ref_model: Any) -> None:
        """Decide where reference log-probs come from, and compute those that can be kept."""
        args = self.args
        mode = self._reference_mode()
        folder = Path(args.reference_cache_dir) if args.reference_cache_dir else default_folder()
        self._database = None if mode == "live" else open_database(folder)
        processes = Processes(
            args.process_index, args.world_size, gather_objects if args.world_size > 1 else None
        )
        self._references = References(
            self._reference_source(ref_model),
            mode,
            self._database,
            with_kl=self.objective.needs_kl,
            options=FillOptions(
                rows_per_batch=args.precompute_ref_batch_size,
                processes=processes,
                show_progress=self.is_world_process_zero() and not args.disable_tqdm,
                context=self.accelerator.autocast,
            ),
            origin=origin_facts(self.scorer, self._autocast_name()),
        )
        # Of a checkpoint nobody knows yet whether it is the policy to begin with, and so the
        # reference, or one to go on from.
        if not _is_checkpoint(loaded_from(self.model).get("name_or_path")):
            self._serve_own_references()
        self._console.print(f"prefopt: reference: {self._references}", markup=False)

    def _reference_mode(self) -> str:
        """Return when reference log-probs are computed: ``auto``, ``cached`` or ``live``.

        Raises:
            ValueError: If the loss needs of the reference what no process has whole.
        """
        mode = "live" if self.args.sync_ref_model else self.args.reference_mode
        if not self.objective.needs_divergences:
            return mode
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"the loss {self.objective.name!r} needs the reference's output layer whole in "
                "each process, which sharded training (FSDP, DeepSpeed) does not keep"
            )
        if mode == "auto":
            self._console.print(
                f"prefopt: the reference is live, as the loss {self.objective.name!r} compares all "
                "that it predicts at each token",
                markup=False,
            )
        return "live"

    def _serve_own_references(self) -> None:
        """Make sure that the trainer's own data can be served."""
        evals = self.eval_dataset
        evals = evals if isinstance(evals, dict) else {"eval": evals}
        # Pairs and no dictionary: an evaluation set may be called "train" too.
        named = [("train", self.train_dataset), *evals.items()]
        if self._references is not None:
            self._references.prepare(*(pair for pair in named if pair[1] is not None))

    def _serve_references(self, dataset: Any, name: str) -> None:
        if self._references is not None:
            self._references.prepare((name, dataset))

    def _reference_source(self, ref_model: Any) -> Source:
        if ref_model is not None:
            check_reference_tokenizer(ref_model, self._tokenizer, self.args)
        if self.args.sync_ref_model:
            return self._moving_source(ref_model)
        if ref_model is not None:
            return self._other_model(ref_model)
        if self.args.reference.startswith(ADAPTER):
            return self._named_adapter(self.args.reference.removeprefix(ADAPTER))
        return self._initial_policy()

    def _initial_policy(self) -> Source:
        autocast = self._autocast_name()
        fresh = is_peft(self.model) and adapter_starts_as_identity(self.scorer)
        if fresh and trains_only_adapters(self.model):
            return BaseModel(self.scorer, autocast)
        # An adapter that had been trained before came from nobody knows where.
        reload = self._reload() if fresh or not is_peft(self.model) else None
        return InitialPolicy(self.scorer, autocast, reload, self._scorer_of, adapter_off=fresh)

    def _reload(self) -> Callable[[], Any] | None:
        """Return what loads the policy's base model again; None if it came from nowhere."""
        name = loaded_from(self.model).get("name_or_path")
        return partial(self._load_reference, name) if name else None

    def _named_adapter(self, path: str) -> Source:
        return NamedAdapter(
            path, self.scorer, self._autocast_name(), self._reload(), self._scorer_of
        )

    def _other_model(self, model: Any) -> Source:
        return OtherModel(
            model,
            self._load_reference,
            reference_options(self.args),
            self._autocast_name(),
            self._scorer_of,
            self._in_layout_of_both,
            self._database,
        )

    def _moving_source(self, ref_model: Any) -> Source:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "sync_ref_model needs all weights in each process, which sharded training (FSDP, "
                "DeepSpeed) does not keep; leave one of them out"
            )
        start = None if ref_model is None else partial(self._load_reference, ref_model)
        source = MovingPolicy(self.scorer, start)
        self._moving = source.copy
        alpha, every = self.args.ref_model_mixup_alpha, self.args.ref_model_sync_steps
        assert alpha is not None  # the configuration sees to it
        assert every is not None
        self.add_callback(_Follow(source.copy, alpha, every))
        return source

    def _load_reference(self, model: Any) -> Any:
        model = load_reference(model, self._tokenizer, self.args)
        prepared = self.accelerator.prepare_model(model, evaluation_mode=True)
        # Accelerate keeps what it prepares for ever; a reference is dropped when it has scored.
        self.accelerator._models.remove(prepared)
        return prepared

    def _in_layout_of_both(self, scorer: Scorer) -> Scorer:
        """Return a scorer of the same model in the layout of the policy's batches."""
        if scorer.layout == self.scorer.layout:
            return scorer
        self.scorer = Scorer(self.model, "padded")
        return Scorer(scorer.model, "padded")

    def _autocast_name(self) -> str:
        """Return the dtype to which forward passes are cast, or ``"none"``."""
        precision = str(self.accelerator.mixed_precision)
        return "none" if precision == "no" else precision

    # Saving it and going on -----------------------------------------------------------------------

    def _save_reference(self, folder: Path) -> None:
        """Write into a folder what the reference is; into a checkpoint, that of a moving one."""
        if self._references is None:
            return
        record = json.dumps(self._references.record(), indent=2, sort_keys=True)
        (folder / RECORD_FILE).write_text(record + "\n", encoding="utf-8")
        if self._moving is not None and folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            save_file(self._moving.weights(), folder / WEIGHTS_FILE)

    def _begin_with_reference(self, folder: Path | None) -> None:
        """Serve the reference of the run that is resumed, or that of this one.

        Args:
            folder: The checkpoint from which training goes on; None to begin.

        Raises:
            ValueError: If the run that is resumed had another one, which cannot be had again.
        """
        if self._references is None:
            return
        if folder is not None:
            self._resume_reference(folder)
        self._serve_own_references()
        self._references.policy_moves()

    def _resume_reference(self, folder: Path) -> None:
        assert self._references is not None
        if self._moving is not None:
            if not (folder / WEIGHTS_FILE).is_file():
                raise ValueError(
                    f"{folder} has no {WEIGHTS_FILE}: it was not trained with sync_ref_model, so a "
                    "run with it cannot go on from there"
                )
            self._moving.restore(load_file(folder / WEIGHTS_FILE))
            return
        if (folder / WEIGHTS_FILE).is_file():
            raise ValueError(
                f"{folder} was trained against a reference that moves; go on with "
                "sync_ref_model=True"
            )
        if not (folder / RECORD_FILE).is_file():
            return
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        if record["fingerprint"] is None or self._references.is_of(record):
            return
        self._check_not_given(record)
        self._references.become(self._recorded(record))
        if isinstance(self.data_collator, PreferenceCollator):
            self.data_collator.reference = self._references.store
        self._console.print(f"prefopt: reference: {self._references}", markup=False)

    def _check_not_given(self, record: Mapping[str, Any]) -> None:
        assert self._references is not None
        source = self._references.source
        if isinstance(source, OtherModel | NamedAdapter):
            raise ValueError(
                f"the run that is resumed was trained against {record['description']} "
                f"[{record['fingerprint'][:12]}], but the reference given here is another: "
                f"{source.description}; give that of the first run again, or leave it out"
            )

    def _recorded(self, record: Mapping[str, Any]) -> Source:
        """Return the reference that a checkpoint was trained against."""
        places = record["loaded_from"]
        candidates: list[Callable[[], Source]] = []
        if is_peft(self.model) and trains_only_adapters(self.model):
            candidates.append(lambda: BaseModel(self.scorer, self._autocast_name()))
        if "adapter" in places:
            candidates.append(lambda: self._named_adapter(places["adapter"]))
        if "name_or_path" in places:
            candidates.append(lambda: self._other_model(places["name_or_path"]))
        fingerprint = Fingerprint(record["fingerprint"], record["facts"])
        return ResumedReference(fingerprint, record["description"], places, candidates)


class _Follow(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Moves a reference towards the policy after every so many optimiser steps."""

    def __init__(self, copy: MovingCopy, alpha: float, every: int) -> None:
        self._copy, self._alpha, self._every = copy, alpha, every

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """See ``transformers.TrainerCallback``."""
        if state.global_step % self._every == 0:
            self._copy.follow(self._alpha)


def checkpoint_folder(resume_from_checkpoint: str | bool | None, output_dir: str) -> Path | None:
    """Return the folder from which training goes on; None if it begins.

    Args:
        resume_from_checkpoint: As ``Trainer.train`` takes it: True means the latest checkpoint.
        output_dir: Where checkpoints are.
    """
    folder = resume_from_checkpoint
    if folder is True:
        folder = str(get_last_checkpoint(output_dir) or "")
    return Path(folder) if folder else None


def _is_checkpoint(name: str | None) -> bool:
    """Whether a policy was loaded from a checkpoint of a run with a reference."""
    files = (RECORD_FILE, _STATE_FILE)
    return name is not None and all((Path(name) / file).is_file() for file in files)
