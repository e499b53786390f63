"""Which reference a run has: chosen when the trainer is made, recorded in checkpoints, resumed."""

import json
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from prefopt.config import PreferenceConfig
from prefopt.config_checks import ADAPTER
from prefopt.engine import Scorer
from prefopt.objective import Objective
from prefopt.reference.adapters import (
    copy_without_adapters,
    place_loaded_from,
    trains_only_adapters,
    with_adapter,
)
from prefopt.reference.fill import FillOptions
from prefopt.reference.fingerprint import Fingerprint
from prefopt.reference.live import MovingCopy, adapter_starts_as_identity
from prefopt.reference.references import References, Served, origin_facts
from prefopt.reference.sources import (
    BaseModel,
    InitialPolicy,
    MovingPolicy,
    NamedAdapter,
    OtherModel,
    ResumedReference,
    Source,
    adapter_loaded_from,
    loaded_from,
)
from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import default_folder, open_database
from prefopt.training.adapter import is_peft
from prefopt.training.adapter_kinds import changes_base
from prefopt.training.checkpoints import REFERENCE_FILE, STATE_FILE, is_checkpoint
from prefopt.training.fsdp import applies_fsdp
from prefopt.training.launch import Launch
from prefopt.training.model import load_reference, reference_options
from prefopt.training.optimizers import to_result
from prefopt.training.tokenizer import check_reference_tokenizer
from prefopt.training.trust import absolute
from prefopt.training.weights import BROKEN, check_weights
from prefopt.training.zero import ready_for_engine

# What a checkpoint says of the reference, and the weights of one that moves.
RECORD_FILE = REFERENCE_FILE
WEIGHTS_FILE = "prefopt_reference.safetensors"


class ReferenceSetup:
    """Chooses the reference of a run, serves it, and finds it again when the run is resumed.

    Made before the collator: the layout of all batches is that of ``scorer``. A reference that
    cannot have it lays them out anew for itself.

    Args:
        model: The policy.
        tokenizer: Its tokenizer.
        args: Those of the run.
        objective: Its losses.
        launch: How it is launched.
        say: Prints a line for people.
        max_length: Most tokens of a prompt + completion; None for any.
        named: Models that the user named in this run: only their code may run.

    Raises:
        NonFiniteError: If the model holds NaN or infinite weights.

    Attributes:
        scorer: Scores with the policy.
        references: Serves reference log-probs, once ``choose`` was called; None if no loss needs
            them.
        moving: The copy of a reference that follows the policy; None for any other.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        args: PreferenceConfig,
        objective: Objective,
        launch: Launch,
        say: Callable[[str], None],
        max_length: int | None = None,
        named: Collection[str] = (),
    ) -> None:
        self._named = named
        self._model = model
        self._tokenizer = tokenizer
        self._args = args
        self._objective = objective
        self._launch = launch
        self._say = say
        self._max_length = max_length
        self._database: Database | None = None
        check_weights(model, "the model", BROKEN, launch.processes)
        self.scorer = self._scorer_of(model)
        self.references: References | None = None
        self.moving: MovingCopy | None = None

    def _scorer_of(self, model: Any) -> Scorer:
        context = self._launch.accelerator.autocast
        layout, backend = self._args.layout, self._args.attn_backend
        return Scorer(model, layout, backend, context, self._max_length)

    # Choosing it ----------------------------------------------------------------------------------

    def choose(self, ref_model: Any = None) -> None:
        """Decide where reference log-probs come from; nothing is computed yet.

        Args:
            ref_model: The reference: a model, its id or path; None for what the arguments say.

        Raises:
            ValueError: If the reference does not go with the loss, the launch or the tokenizer.
        """
        if not (self._objective.needs_reference or self._args.log_ratios):
            return
        args, launch = self._args, self._launch
        mode = self._mode()
        folder = Path(args.reference_cache_dir) if args.reference_cache_dir else default_folder()
        self._database = None if mode == "live" else open_database(folder)
        self.references = References(
            self.source_of(ref_model),
            mode,
            self._database,
            with_kl=self._objective.needs_kl,
            options=FillOptions(
                rows_per_batch=args.precompute_ref_batch_size,
                processes=launch.processes,
                show_progress=launch.show_progress,
                context=launch.accelerator.autocast,
            ),
            origin=origin_facts(self.scorer, launch.autocast_name),
        )

    @property
    def policy_is_checkpoint(self) -> bool:
        """Whether the policy was loaded from a checkpoint of a run with a reference.

        It is then not known yet whether it is the policy to begin with, and so the reference, or
        one to go on from.
        """
        places = loaded_from(self._model) | adapter_loaded_from(self._model)
        name = places.get("adapter", places.get("name_or_path"))
        files = (RECORD_FILE, STATE_FILE)
        return name is not None and all((Path(name) / file).is_file() for file in files)

    def _mode(self) -> str:
        """Return when reference log-probs are computed: ``auto``, ``cached`` or ``live``.

        Raises:
            ValueError: If the loss needs of the reference what no process has whole.
        """
        mode = "live" if self._args.sync_ref_model else self._args.reference_mode
        if not self._objective.needs_divergences:
            return mode
        if self._launch.is_sharded:
            raise ValueError(
                f"the loss {self._objective.name!r} needs the reference's output layer whole in "
                "each process, which sharded training (FSDP, ZeRO-3) does not keep"
            )
        if mode == "auto":
            self._say(
                f"prefopt: the reference is live, as the loss {self._objective.name!r} compares "
                "all that it predicts at each token"
            )
        return "live"

    def source_of(self, ref_model: Any = None) -> Source:
        """Return what the reference is.

        Raises:
            ValueError: If it does not go with the launch or the tokenizer.
        """
        if ref_model is not None:
            check_reference_tokenizer(ref_model, self._tokenizer, self._args)
        if self._args.sync_ref_model:
            return self._moving_source(ref_model)
        if ref_model is not None:
            return self._other_model(ref_model)
        if self._args.reference.startswith(ADAPTER):
            return self._named_adapter(self._args.reference.removeprefix(ADAPTER))
        return self._initial_policy()

    def _initial_policy(self) -> Source:
        model, autocast = self._model, self._launch.autocast_name
        zero_initialised = is_peft(model) and adapter_starts_as_identity(self.scorer)
        if zero_initialised and trains_only_adapters(model):
            return BaseModel(self.scorer, autocast)
        is_base = zero_initialised or not is_peft(model)
        reload = self._reload() if is_base else self._reload_with_adapter()
        return InitialPolicy(
            self.scorer, autocast, reload, self._scorer_of, adapter_off=zero_initialised
        )

    def _reload(self) -> Callable[[], Any] | None:
        """Return what loads the policy's base model again; None if it was not loaded."""
        name = loaded_from(self._model).get("name_or_path")
        return partial(self._load, name) if name else None

    def _reload_with_adapter(self) -> Callable[[], Any] | None:
        """Return what makes the policy as it was loaded; None if its adapter was not loaded here.

        Where only adapters are trained, that is the adapter on the base that is in memory.
        """
        model, place = self._model, place_loaded_from(self._model)
        if place is None:
            return None
        if changes_base(model) or not trains_only_adapters(model):
            return partial(self._load, place.path)
        return lambda: with_adapter(
            copy_without_adapters(model),
            place.path,
            places=place.places,
            allow_missing=self._args.allow_missing_weights,
        )

    def _named_adapter(self, path: str) -> Source:
        if is_peft(self._model) and changes_base(self._model):
            raise ValueError(
                f"reference='adapter:{path}' means that adapter on the policy's base model, which "
                "the start of the policy's own adapter has changed (init_lora_weights); give "
                f"ref_model={path!r}, which is loaded on a base model of its own"
            )
        autocast = self._launch.autocast_name
        return NamedAdapter(path, self.scorer, autocast, self._reload(), self._scorer_of)

    def _other_model(self, model: Any) -> Source:
        return OtherModel(
            model,
            self._load,
            reference_options(self._args, self._is_named(model)),
            self._launch.autocast_name,
            self._scorer_of,
            self._database,
        )

    def _moving_source(self, ref_model: Any) -> Source:
        if self._launch.is_sharded:
            raise ValueError(
                "sync_ref_model needs all weights in each process, which sharded training (FSDP, "
                "ZeRO-3) does not keep; leave one of them out"
            )
        start = None if ref_model is None else partial(self._load, ref_model)
        source = MovingPolicy(self.scorer, start)
        self.moving = source.copy
        return source

    def _is_named(self, model: Any) -> bool:
        """Whether it is the user who named a model, and not a checkpoint or an adapter."""
        return not isinstance(model, str) or absolute(model) in self._named

    def _load(self, model: Any) -> Any:
        model = load_reference(model, self._tokenizer, self._args, self._is_named(model))
        check_weights(model, "the reference", BROKEN)
        accelerator = self._launch.accelerator
        # Where FSDP shards the policy, accelerate leaves other models where they are.
        placed = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
        place = True if applies_fsdp(self._launch) and not placed else None
        prepared = accelerator.prepare_model(model, place, evaluation_mode=True)
        # Accelerate keeps what it prepares for ever; a reference is dropped when it has scored.
        accelerator._models.remove(prepared)
        # Its forward pass is made to cast, as scoring does in its own context; what a probe asks of
        # it outside must be what its layers compute.
        prepared = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        return ready_for_engine(prepared, accelerator)

    # Serving it -----------------------------------------------------------------------------------

    @property
    def needs_all_rows(self) -> bool:
        """Whether rows that training does not see must be known too: they cannot be had later."""
        return self.references is not None and not self.references.source.stays

    def serve(self, *datasets: tuple[str, Any] | Served) -> None:
        """Make sure that prepared rows can be served: compute what can be kept and is not known."""
        if self.references is not None:
            wanted = [its for its in datasets if its[1] is not None]
            self.references.prepare(*wanted, at_steps=True)

    def announce(self) -> None:
        """Print what the reference is."""
        if self.references is not None:
            self._say(f"prefopt: reference: {self.references}")

    def begin(self, folder: Path | None, *datasets: tuple[str, Any] | Served) -> None:
        """Serve the reference of the run that is resumed, or that of this one.

        Args:
            folder: The checkpoint from which training goes on; None to begin.
            datasets: As in ``serve``.

        Raises:
            ValueError: If the run that is resumed had another one, which cannot be had again.
        """
        if self.references is None:
            return
        if folder is not None:
            self._resume(folder, self.references)
        self.serve(*datasets)
        self.references.source.moved = True

    # Checkpoints ----------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write into a folder what the reference is; into a checkpoint, that of a moving one."""
        if self.references is None:
            return
        record = json.dumps(self.references.record(), indent=2, sort_keys=True)
        (folder / RECORD_FILE).write_text(record + "\n", encoding="utf-8")
        if self.moving is not None and is_checkpoint(folder):
            save_file(self.moving.weights(), folder / WEIGHTS_FILE)

    def _resume(self, folder: Path, references: References) -> None:
        weights = folder / WEIGHTS_FILE
        if self.moving is not None:
            if not weights.is_file():
                raise ValueError(
                    f"{folder} has no {WEIGHTS_FILE}: it was not trained with sync_ref_model, so a "
                    "run with it cannot go on from there"
                )
            self.moving.restore(load_file(weights))
            return
        if weights.is_file():
            raise ValueError(
                f"{folder} was trained against a reference that moves; go on with "
                "sync_ref_model=True"
            )
        if not (folder / RECORD_FILE).is_file():
            return
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        if record["fingerprint"] is None or references.is_of(record):
            return
        _check_not_given(record, references.source)
        references.switch_to(self._resumed(record))
        self.announce()

    def _resumed(self, record: Mapping[str, Any]) -> Source:
        """Return the reference that a checkpoint was trained against."""
        places = record.get("loaded_from", record.get("again", {}))  # as version 0.1 called it
        candidates: list[Callable[[], Source]] = []
        if is_peft(self._model) and trains_only_adapters(self._model):
            candidates.append(lambda: BaseModel(self.scorer, self._launch.autocast_name))
        if "adapter" in places:
            candidates.append(lambda: self._named_adapter(places["adapter"]))
        if "name_or_path" in places:
            candidates.append(lambda: self._other_model(places["name_or_path"]))
        fingerprint = Fingerprint(record["fingerprint"], record["facts"])
        return ResumedReference(fingerprint, record["description"], places, candidates)


def check_reference_asked_for(args: PreferenceConfig, objective: Objective, ref_model: Any) -> None:
    """Raise where a reference is given in two ways, or to a loss that cannot use it.

    Raises:
        ValueError: Saying what to leave out.
    """
    if ref_model is not None and args.reference.startswith(ADAPTER):
        raise ValueError(
            f"the reference is given twice: ref_model and reference={args.reference!r}; leave "
            "one of them out"
        )
    if objective.needs_divergences and args.reference_mode == "cached":
        raise ValueError(
            f"the loss {objective.name!r} compares all that policy and reference predict "
            "at each token, and a cache holds log-probs of the tokens that follow; use "
            "reference='live' (which 'auto' is for this loss), without precompute_ref_log_probs"
        )
    if objective.needs_reference or args.log_ratios:
        return
    for given, what in (
        (ref_model is not None, "ref_model was given"),
        (args.reference != "auto", f"reference={args.reference!r} was asked for"),
        (args.sync_ref_model, "sync_ref_model=True was asked for"),
    ):
        if given:
            raise ValueError(
                f"{what}, but the loss {objective.name!r} uses no reference; leave it out"
            )


def _check_not_given(record: Mapping[str, Any], source: Source) -> None:
    """Raise where a run is resumed with another reference than it had."""
    if isinstance(source, OtherModel | NamedAdapter):
        raise ValueError(
            f"the run that is resumed was trained against {record['description']} "
            f"[{record['fingerprint'][:12]}], but the reference given here is another: "
            f"{source.description}; give that of the first run again, or leave it out"
        )


class FollowPolicy(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Moves a reference towards the policy after every so many optimiser steps."""

    def __init__(self, copy: MovingCopy, args: PreferenceConfig) -> None:
        alpha, every = args.ref_model_mixup_alpha, args.ref_model_sync_steps
        assert alpha is not None  # the configuration sees to it
        assert every is not None
        self._copy, self._alpha, self._every = copy, alpha, every

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """See ``transformers.TrainerCallback``."""
        if state.global_step % self._every == 0:
            to_result(kwargs.get("optimizer"))
            self._copy.follow(self._alpha)
