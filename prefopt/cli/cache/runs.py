"""``prefopt cache fill`` and ``verify``: those that prepare data and reference of a training run.

They take the options of ``prefopt train``, so what they compute is what that run will look up.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefopt.cli import is_main_process
from prefopt.cli.cache.store import folder_of, store_errors
from prefopt.cli.cache.text import model_text, printable, size_text
from prefopt.cli.errors import UserError, user_errors
from prefopt.cli.rows import load_splits
from prefopt.cli.train import checkpoint_of, make_parser, parse, run_arguments
from prefopt.reference.fingerprint import Fingerprint
from prefopt.reference.references import References, Served
from prefopt.reference.sources import Source
from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import FILE_NAME, FileStore
from prefopt.reference.store.maintain import describe_store, open_store, references_of
from prefopt.reference.store.repair import is_damage
from prefopt.reference.store.verify import Comparison, nearest_reference, recompute, tolerance_of
from prefopt.training.checkpoints import checkpoint_folder
from prefopt.training.launch import Launch
from prefopt.training.reference import ReferenceSetup
from prefopt.training.run import Run, named_datasets, prepare_run

_SAMPLE = 100

_FILL = """\
Compute the reference log-probs that a training run would look up, and keep them in the store.

  prefopt cache fill --model MODEL --dataset DATA [--loss_type NAME] [options]
  accelerate launch -m prefopt cache fill --config run.yaml

Options are those of `prefopt train`: those that decide the reference and the token ids must be
the same for training, such as --dtype, --bf16, --max_length and the splits. All others, such as
the loss, --beta, --learning_rate and LoRA's rank, may differ. --cache-dir names the folder of the
store. Nothing else is written.
"""

_VERIFY = """\
Compute a sample of stored reference log-probs again, and compare.

  prefopt cache verify --model MODEL --dataset DATA [--sample N] [options]

Options are those of `prefopt train`, --cache-dir and --sample (default: 100 completions, chosen
by --seed).
"""


class _Prepared(NamedTuple):
    """Data and reference of a training run, without the trainer.

    Attributes:
        args: The run's ``PreferenceConfig``.
        run: Policy, losses and data.
        setup: Chooses and serves the reference.
        launch: The processes, and what computes.
    """

    args: Any
    run: Run
    setup: ReferenceSetup
    launch: Launch

    @property
    def datasets(self) -> list[Served]:
        """The prepared rows, each set with its name."""
        return named_datasets(self.run.train_dataset, self.run.eval_dataset)


def fill(argv: Sequence[str]) -> int:
    """Compute what a training run would look up; return the exit code."""
    data_args, config, model_args = _parse(list(argv), "fill", _FILL)
    folder = folder_of(config.reference_cache_dir)
    _check_folder(folder)
    resume = checkpoint_folder(checkpoint_of(config.resume_from_checkpoint), config.output_dir)
    start = time.perf_counter()
    prepared = _prepare(data_args, config, model_args)
    with user_errors():
        prepared.setup.choose()
        prepared.setup.begin(resume, *prepared.datasets)
    seconds = time.perf_counter() - start
    references = prepared.setup.references
    assert references is not None  # the loss needs one
    store = references.store
    if not isinstance(store, FileStore) or references.fingerprint is None:
        raise UserError("nothing was kept: " + str(references))
    code = 0
    if is_main_process():
        code = _print_filled(references, references.fingerprint, store, seconds)
    prepared.launch.accelerator.end_training()
    return code


def _print_filled(
    references: References, fingerprint: Fingerprint, store: FileStore, seconds: float
) -> int:
    with store_errors(store.database.path.parent):
        info = describe_store(open_store(store.database.path.parent, readonly=True))
    held = {item.fingerprint: item for item in info.references}.get(fingerprint.digest)
    completions, tokens = (0, 0) if held is None else (held.completions, held.tokens)
    print(f"computed     {references.computed:,} completions in {seconds:.1f} s, loading included")
    print(f"reference    {references.source.description}: {model_text(fingerprint.facts)}")
    print(f"fingerprint  {fingerprint.digest}")
    print(f"kept of it   {completions:,} completions, {tokens:,} tokens")
    print(f"in           {info.path} ({size_text(info.size_bytes)})")
    if store.in_memory:
        print(f"not kept     {store.in_memory:,} completions: the file could not be written")
    return 1 if store.in_memory else 0


def verify(argv: Sequence[str]) -> int:
    """Compute a sample of stored log-probs again and compare; return the exit code."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--sample", type=int, default=_SAMPLE)
    options, rest = own.parse_known_args(list(argv))
    if options.sample < 1:
        raise UserError(f"--sample must be at least 1, got {options.sample}")
    data_args, config, model_args = _parse(rest, "verify", _VERIFY)
    folder = folder_of(config.reference_cache_dir)
    with store_errors(folder):
        database = open_store(folder, readonly=True)
    prepared = _prepare(data_args, config, model_args)
    with user_errors():
        source = prepared.setup.source_of()
    fingerprint = source.fingerprint()
    if fingerprint is None:
        raise UserError("the weights of the reference are spread over processes: verify with one")
    with store_errors(folder):
        _check_known(database, fingerprint)
        comparison = _compare(prepared, source, database, fingerprint, options.sample)
    if is_main_process():
        _print_comparison(comparison, fingerprint, database.path)
    if not comparison.completions:
        return 1
    return 0 if comparison.agrees else 1


def _check_known(database: Database, fingerprint: Fingerprint) -> None:
    """Say what the store has instead, if it has nothing of a reference."""
    references = references_of(database)
    if any(info.fingerprint == fingerprint.digest and info.completions for info in references):
        return
    message = (
        f"{database.path} has no log-probs of this reference, {fingerprint.digest[:12]}: "
        f"{model_text(fingerprint.facts)}"
    )
    nearest = nearest_reference(fingerprint.facts, references)
    if nearest is not None:
        info, parts = nearest
        message += (
            f". The nearest that it has, {info.fingerprint[:12]}: {model_text(info.facts)}, has "
            f"other {', '.join(parts) or 'contents'}"
        )
    raise UserError(printable(message))


def _compare(
    prepared: _Prepared, source: Source, database: Database, fingerprint: Fingerprint, sample: int
) -> Comparison:
    reference = source.load()
    context = prepared.launch.accelerator.autocast
    # A copy that is not written to: looking does not count as a run's use of the reference.
    store = FileStore(Database(database.path, readonly=True), *fingerprint, origin={})
    return recompute(
        [its.dataset for its in prepared.datasets if its.dataset is not None],
        store,
        reference,
        context,
        with_kl=prepared.run.objective.needs_kl,
        sample=sample,
        seed=prepared.args.seed,
        tolerance=tolerance_of(fingerprint.facts),
    )


def _print_comparison(comparison: Comparison, fingerprint: Fingerprint, path: Path) -> None:
    print(f"reference    {fingerprint.digest}: {printable(model_text(fingerprint.facts))}")
    print(f"in           {path}")
    print(
        f"known        {comparison.known:,} completions of this data; "
        f"{comparison.unknown:,} are missing"
    )
    print(f"compared     {comparison.completions:,} completions, {comparison.tokens:,} tokens")
    print(f"largest      {comparison.largest:.2g} nats of a token")
    print(f"mean         {comparison.mean:.2g} nats of a token")
    print(f"accepted     {comparison.tolerance:.2g} nats of a token")
    if not comparison.completions:
        print("Nothing of this data is in the store: nothing was verified.")
    elif comparison.agrees:
        print("The store agrees with the reference.")
    else:
        print(
            "The store does NOT agree with the reference. Delete what it has of it: "
            f"prefopt cache prune --reference {fingerprint.digest[:12]} --yes"
        )


# Both ---------------------------------------------------------------------------------------------


def _parse(argv: list[str], name: str, description: str) -> tuple[Any, Any, Any]:
    parser = make_parser()
    parser.prog = f"prefopt cache {name}"
    parser.usage = f"{parser.prog} --model MODEL --dataset DATA [options]"
    parser.description = description
    parser.add_argument(
        "--cache-dir",
        "--cache_dir",
        dest="reference_cache_dir",
        default=argparse.SUPPRESS,
        help="The same as --reference_cache_dir.",
    )
    data_args, config, model_args = parse(parser, argv)
    if data_args.dataset_streaming:
        raise UserError(
            "a stream is not known before it is read, so the store cannot be filled or verified "
            "for it: leave out --dataset_streaming. What it computes while training is kept"
        )
    if config.reference == "live" or config.sync_ref_model:
        option = "sync_ref_model" if config.sync_ref_model else "reference live"
        raise UserError(f"--{option} computes at each step and keeps nothing: leave it out")
    return data_args, config, model_args


def _prepare(data_args: Any, config: Any, model_args: Any) -> _Prepared:
    """Return what a training run would score, on the device that would score it.

    Raises:
        UserError: If the loss uses no reference, or an option or the data are wrong.
    """
    with user_errors():
        train_rows, eval_rows = load_splits(data_args, config)
        arguments = run_arguments(config, model_args)
        config = arguments["args"]  # which say how models are quantised, too
        run = prepare_run(train_dataset=train_rows, eval_dataset=eval_rows, **arguments)
        if not run.objective.needs_reference:
            raise UserError(
                f"the loss {run.objective.name!r} uses no reference: there is nothing to keep"
            )
        launch = Launch.to_score(run.model, config)
    return _Prepared(config, run, run.reference(config, launch), launch)


def _check_folder(folder: Path) -> None:
    """Make sure that what will be computed can be kept; what is damaged is replaced."""
    path = folder / FILE_NAME
    with store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            database = Database(path)
            with database.writing():
                pass
            database.close()
        except Exception as error:
            if not is_damage(error):
                raise
