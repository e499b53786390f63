"""Wrong models, tokenizers, datasets and arguments of a trainer."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import TrainerCallback

from prefopt import PreferenceTrainer
from prefopt.data import DataError
from tests.bad_input.case import TALK, Case
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import config

NAN = float("nan")
PREPARED = {
    "kind": "paired",
    "prompt_ids": [3],
    "completion_ids": [[5, 6], [7]],
    "desirable": [True, False],
    "ranks": [0, 1],
}
OWN = (
    "ref_model",
    "eval_dataset",
    "peft_config",
    "compute_metrics",
    "callbacks",
    "optimizers",
    "data_collator",
    "processing_class",
)


def make(folder: Path, model: Any = "llama", train: Any = None, **options: Any) -> Any:
    """Return a trainer of a tiny model, or of what is given in its place."""
    own = {name: options.pop(name) for name in OWN if name in options}
    given = tiny_model(model) if model == "llama" else model
    return PreferenceTrainer(
        given,
        args=options.pop("args", None) or config(folder / "out", **options),
        train_dataset=tiny_rows(6) if train is None else train,
        **{"processing_class": tiny_tokenizer(), **own},
    )


def refused(name: str, says: str, raises: Any = ValueError, **given: Any) -> Case:
    """Return the case of a trainer that cannot be made; what is callable is made for it."""

    def do(folder: Path) -> Any:
        return make(folder, **{key: made(value) for key, value in given.items()})

    return Case(name, do, says, raises)


def made(value: Any) -> Any:
    return value() if isinstance(value, Later) else value


class Later:
    """A value that is made when the case is tried."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __call__(self) -> Any:
        return self._make()


def rows(*given: dict[str, Any]) -> Later:
    return Later(lambda: Dataset.from_list(list(given)))


def stream(given: Sequence[dict[str, Any]]) -> Later:
    return Later(lambda: IterableDataset.from_generator(lambda: iter(given)))


def row_refused(name: str, says: str, row: int | None, column: str | None, **given: Any) -> Case:
    """Return the case of a dataset that is refused when the trainer is made."""
    return Case(name, refused(name, says, **given).do, says, DataError, row, column)


def trained(name: str, says: str, row: int | None, column: str | None, **given: Any) -> Case:
    """Return the case of a stream that is refused while it is trained on."""
    given = {"per_device_train_batch_size": 8, **given}
    do = refused(name, says, **given).do
    return Case(name, lambda folder: do(folder).train(), says, DataError, row, column)


def without(*tokens: str, **changes: Any) -> Later:
    """Return a tokenizer without some special tokens, and with other attributes."""

    def make_it() -> Any:
        tokenizer = tiny_tokenizer()
        for name, value in {**dict.fromkeys(tokens), **changes}.items():
            setattr(tokenizer, name, value)
        return tokenizer

    return Later(make_it)


def grown() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["more", "words"])
    return tokenizer


def other_order() -> Any:
    """Return a saved tokenizer's folder whose ids are not those of the policy's."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<pad>": 1} | {f"w{i}": 99 - i for i in range(3, 97)}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")


def saved_model(folder: Path, tokenizer: Any = None) -> Path:
    tiny_model("llama").save_pretrained(folder / "model")
    (tokenizer or tiny_tokenizer()).save_pretrained(folder / "model")
    return folder / "model"


def from_folder(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Return what makes a trainer of a damaged folder of a model."""

    def do(folder: Path) -> Any:
        path = saved_model(folder)
        change(path)
        return make(folder, str(path), processing_class=None)

    return do


def cut_weights(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def remove_tokenizer(path: Path) -> None:
    for file in path.glob("tokenizer*"):
        file.unlink()


def report_of(**given: Any) -> Callable[[Path], str]:
    """Return what makes a trainer, and the reports of its data."""

    def do(folder: Path) -> str:
        trainer = make(folder, **{key: made(value) for key, value in given.items()})
        return "\n".join(report.render() for report in trainer.data_reports.values())

    return do


def pairs_and_labels() -> Dataset:
    return Dataset.from_list(
        [row | {"completion": None, "label": None} for row in tiny_rows(4)]
        + [row | {"chosen": None, "rejected": None} for row in tiny_rows(4, "unpaired")]
    )


PAIRS = list(tiny_rows(20))
NULL = {"prompt": "w3", "chosen": None, "rejected": " w4"}

TOKENIZERS = [
    Case(
        "no padding token and no EOS",
        report_of(processing_class=without("pad_token", "eos_token")),
        "tokenizer has no end-of-sequence token; none was appended",
        None,
    ),
    row_refused(
        "no template",
        "has no chat template: set tokenizer.chat_template",
        0,
        None,
        train=rows(TALK),
    ),
    *(
        row_refused(
            f"template {template!r}",
            says,
            0,
            None,
            train=rows(TALK),
            processing_class=without(chat_template=template),
        )
        for template, says in (
            ("", "has no chat template"),
            ("{{ raise_exception('only one turn') }}", "refuses the messages: .* only one turn"),
            ("{{ not closed", "refuses the messages: TemplateSyntaxError"),
            ("{{ nobody.knows }}", "refuses the messages: UndefinedError"),
        )
    ),
    refused(
        "tokenizer by name",
        "must be a tokenizer or a processor",
        TypeError,
        processing_class="gpt2",
    ),
    refused(
        "a vocabulary larger than the embedding",
        "99 tokens but the model embeds only 97",
        processing_class=Later(grown),
    ),
    refused(
        "an embedding smaller than the vocabulary",
        "97 tokens but the model embeds only 50",
        model=Later(lambda: tiny_model("llama", vocab_size=50)),
    ),
    refused(
        "a padding token that is not known", "pad_token '<x>' is not in the tok", pad_token="<x>"
    ),
    refused(
        "no tokenizer for a model from nowhere", "so pass processing_class", processing_class=None
    ),
    Case(
        "a reference with other ids",
        lambda folder: make(folder, ref_model=str(saved_model(folder, other_order()))),
        "reads other token ids than the policy",
        ValueError,
    ),
    refused(
        "a reference with fewer ids",
        "97 tokens but the model embeds only 90",
        ref_model=Later(lambda: tiny_model("llama", vocab_size=90)),
    ),
]


def with_nan() -> Any:
    model = tiny_model("llama")
    model.lm_head.weight.data[5] = NAN
    return model


MODELS = [
    refused(
        "a weight of NaN",
        "holds NaN or infinite weights, in 1 tensors, the first is lm_head.weight",
        model=Later(with_nan),
    ),
    *(
        refused(
            f"model {model!r}", "model must be an id, a path, or a model", TypeError, model=model
        )
        for model in (5, dict, {"a": 1})
    ),
    refused(
        "a module",
        "model must be an id, a path, or a model",
        TypeError,
        model=Later(lambda: torch.nn.Linear(2, 2)),
    ),
    *(
        refused(
            f"ref_model {model!r}",
            "ref_model must be an id, a path or a model",
            TypeError,
            ref_model=model,
        )
        for model in (5, {"a": 1})
    ),
    refused(
        "a model that is not there", "there is no model in ./nowhere", OSError, model="./nowhere"
    ),
    refused(
        "an id that is not there",
        "can't load the model nobody/nothing",
        OSError,
        model="nobody/nothing",
    ),
    refused(
        "a reference that is not there",
        "there is no model in /nowhere",
        OSError,
        ref_model="/nowhere",
    ),
    refused(
        "an adapter that is not there",
        "no adapter at|there is no adapter",
        reference="adapter:./nowhere",
    ),
    Case("cut weights", from_folder(cut_weights), "can't load the model .*model", ValueError),
    Case(
        "no weights",
        from_folder(lambda p: (p / "model.safetensors").unlink()),
        "can't load the model .*model: OSError",
        OSError,
    ),
    Case(
        "a broken config.json",
        from_folder(lambda p: (p / "config.json").write_text("{")),
        "can't load the model .*model",
        OSError,
    ),
    Case(
        "an unknown kind of model",
        from_folder(lambda p: (p / "config.json").write_text('{"model_type": "new"}')),
        "can't load the model .*model: .*`new`",
        ValueError,
    ),
    Case(
        "no tokenizer beside the model",
        from_folder(remove_tokenizer),
        "can't load the tokenizer of .*model",
        ValueError,
    ),
    Case(
        "a broken tokenizer",
        from_folder(lambda p: (p / "tokenizer.json").write_text("{")),
        "can't load the tokenizer of .*model",
        ValueError,
    ),
    Case(
        "an empty folder as model",
        from_folder(lambda p: [shutil.rmtree(p), p.mkdir()]),
        "has no config.json, so it is not the folder of a model; it holds nothing",
        ValueError,
    ),
    refused(
        "a reference beside a loss without",
        "uses no reference; leave it out",
        loss_type="simpo",
        ref_model=Later(lambda: tiny_model("llama", seed=1)),
    ),
    refused(
        "loading options of a loaded model",
        "only matters when the model is loaded here",
        model_init_kwargs={"dtype": "float32"},
    ),
]

SAME = {"chosen": "w3 w4", "rejected": "w3 w4"}

DATASETS = [
    *(
        refused(
            f"train_dataset is {name}",
            "train_dataset must be a datasets.Dataset",
            TypeError,
            train=data,
        )
        for name, data in {
            "a list": [PAIRS[0]],
            "a dictionary": {"prompt": ["p"]},
            "a path": "rows.jsonl",
            "a number": 5,
            "a data frame": Later(lambda: tiny_rows(3).to_pandas()),
            "splits": Later(lambda: DatasetDict(train=tiny_rows(3), test=tiny_rows(3))),
            "an iterator": Later(lambda: iter(PAIRS)),
        }.items()
    ),
    *(
        refused(f"eval_dataset is {name}", says, raises, eval_dataset=data)
        for name, data, says, raises in (
            ("a list of a number", [1], r"eval_dataset\[0\] must be a datasets.Dataset", TypeError),
            ("an empty dictionary", {}, "eval_dataset is an empty dictionary", ValueError),
            ("a dictionary of null", {"a": None}, "eval_dataset.'a'. must be", TypeError),
            ("named by a number", {5: tiny_rows(2)}, "a name must be text, got 5", TypeError),
        )
    ),
    refused(
        "no rows",
        "has no rows",
        train=Later(lambda: Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []})),
    ),
    row_refused(
        "no rows to evaluate on",
        "eval data: has no rows",
        None,
        None,
        eval_dataset=Later(lambda: tiny_rows(3).select([])),
    ),
    refused("an empty stream", "has no rows", train=stream([])),
    row_refused(
        "labels for a loss on pairs",
        "the data is unpaired, but the loss needs",
        None,
        None,
        train=Later(lambda: tiny_rows(6, "unpaired")),
        loss_type="dpo",
    ),
    row_refused(
        "labels to evaluate a loss on pairs",
        "the data is unpaired",
        None,
        None,
        eval_dataset=Later(lambda: tiny_rows(6, "unpaired")),
    ),
    row_refused(
        "pairs and labels for one loss",
        "some of the data is unpaired",
        None,
        None,
        train=Later(pairs_and_labels),
        loss_type="dpo",
    ),
    row_refused(
        "pairs and labels, no loss for labels",
        "add one for 'unpaired'",
        None,
        None,
        train=Later(pairs_and_labels),
        loss_type={"paired": "dpo"},
    ),
    row_refused(
        "a loss on pairs for labels",
        "the data is unpaired",
        None,
        None,
        train=Later(lambda: tiny_rows(6, "unpaired")),
        loss_type={"unpaired": "dpo"},
    ),
    *(
        row_refused(
            f"every row {name}",
            says,
            None,
            None,
            train=Later(lambda cells=cells: tiny_rows(4).map(lambda row: {**row, **cells})),
        )
        for name, says, cells in (
            ("the same twice", "chosen and rejected are the same in each row", SAME),
            ("without a word", "each row has a completion without a word", {"chosen": ""}),
        )
    ),
    Case(
        "labels of one kind",
        lambda folder: make(
            folder,
            train=tiny_rows(4, "unpaired").map(lambda row: {**row, "label": False}),
            loss_type="kto",
        ),
        "every label is False .4 rows., so the loss only makes",
        None,
    ),
    refused(
        "no full batch, and others are dropped",
        "dataloader_drop_last=True drops all 4 rows: a batch takes 9",
        train=Later(lambda: tiny_rows(4)),
        dataloader_drop_last=True,
        per_device_train_batch_size=9,
    ),
    *(
        refused(
            f"the best by {metric}",
            f"metric_for_best_model='{metric}' is no metric .*{says}",
            eval_dataset={"a": tiny_rows(2)},
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=True,
            save_strategy="best",
            metric_for_best_model=metric,
        )
        for metric, says in (("loss", "did you mean 'eval_a_loss'"), ("a_los", "'eval_a_loss'"))
    ),
    row_refused("no margins", "the loss takes margins", 0, None, loss_type="odpo"),
    row_refused(
        "a margin that is missing",
        "the loss takes margins",
        2,
        None,
        loss_type="odpo",
        train=Later(lambda: tiny_rows(4).add_column("margin", [1.0, 2.0, None, 1.0])),
    ),
    row_refused(
        "a score of one side",
        "the loss takes margins",
        0,
        None,
        loss_type="odpo",
        train=Later(lambda: tiny_rows(4).add_column("score_chosen", [1.0] * 4)),
    ),
    *(
        row_refused(
            f"prepared rows, {name}",
            says,
            1,
            column,
            train=rows(PREPARED, PREPARED | cells, PREPARED),
        )
        for name, cells, says, column in (
            ("an id of no token", {"prompt_ids": [97]}, "from 0 to 96", "prompt_ids"),
            ("a negative id", {"completion_ids": [[-1], [7]]}, "token 0 is -1", "completion_ids"),
            ("an empty completion", {"completion_ids": [[5], []]}, "is empty", "completion_ids"),
            ("an unknown kind", {"kind": "pair"}, "got 'pair'", "kind"),
        )
    ),
    row_refused(
        "prepared rows, a weight of NaN",
        "at least 0",
        1,
        "weight",
        train=rows(PREPARED | {"weight": 1.0}, PREPARED | {"weight": NAN}),
    ),
    row_refused(
        "prepared rows, a short mask",
        "needs 2 values",
        0,
        "completion_masks",
        train=rows(PREPARED | {"completion_masks": [[True], [True]]}),
    ),
    row_refused(
        "prepared rows of another kind",
        "the data is unpaired",
        None,
        None,
        loss_type="dpo",
        train=rows(
            {
                **PREPARED,
                "kind": "unpaired",
                "ranks": [],
                "completion_ids": [[5]],
                "desirable": [True],
            }
        ),
    ),
    Case(
        "prepared rows that are too long",
        report_of(train=rows(PREPARED | {"completion_ids": [[5] * 50, [6]]}), max_length=10),
        "1 completion of 1 row at max_length 10, by 41 tokens",
        None,
    ),
    Case(
        "scores of a pair that are no scores",
        lambda folder: (
            "not read"
            + str(make(folder, train=tiny_rows(6).add_column("scores", ["x"] * 6)).train())
        ),
        "not read",
        None,
    ),
    trained(
        "a null far on in a stream", "is null", 15, "chosen", train=stream([*PAIRS[:15], NULL])
    ),
    trained(
        "a null in a worker's stream",
        "train data, row 15, column 'chosen': is null",
        None,  # torch hands on nothing of a worker's error but its text
        None,
        dataloader_num_workers=1,
        train=stream([*PAIRS[:15], NULL]),
    ),
    trained(
        "NaN far on in a stream",
        "at least 0",
        17,
        "weight",
        train=stream([*PAIRS[:17], PAIRS[17] | {"weight": NAN}]),
    ),
    trained(
        "another kind far on in a stream",
        "some of the data is unpaired",
        12,
        None,
        train=stream([*PAIRS[:12], *tiny_rows(9, "unpaired")]),
    ),
    trained(
        "a stream of which nothing is left",
        "no row is left",
        None,
        None,
        train=stream([{"prompt": "w3 " * 50, "chosen": "w4", "rejected": "w5"}] * 9),
        max_length=20,
    ),
    refused("a stream without max_steps", "give max_steps", train=stream(PAIRS), max_steps=-1),
]

MIXTURES = [
    refused(f"datasets, {name}", says, raises, train=data)
    for name, says, raises, data in (
        ("none", "train_dataset is an empty list", ValueError, []),
        ("a path", r"train_dataset\[0\] must be a datasets.Dataset", TypeError, ["rows.jsonl"]),
        (
            "a stream",
            r"train_dataset\[0\] is a stream",
            ValueError,
            Later(lambda: [tiny_rows(2).to_iterable_dataset()]),
        ),
        *(
            (
                f"a weight of {weight!r}",
                r"the weight of train_dataset\[0\] must be",
                (ValueError, TypeError),
                Later(lambda weight=weight: [(tiny_rows(2), weight)]),
            )
            for weight in (0, -1, NAN, float("inf"), "1", True, None)
        ),
        (
            "one without rows",
            r"train_dataset\[1\].* no rows",
            ValueError,
            Later(lambda: [tiny_rows(2), tiny_rows(2).select([])]),
        ),
        (
            "kinds for one loss",
            r"train\[1\] is unpaired",
            ValueError,
            Later(lambda: [tiny_rows(2), tiny_rows(2, "unpaired")]),
        ),
    )
]

HOOKS = [
    refused(
        "args in a dictionary",
        "args must be a PreferenceConfig, got dict",
        TypeError,
        args={"a": 1},
    ),
    *(
        refused(f"{name}={value!r}", f"{name} must be", TypeError, **{name: value})
        for name, value in (
            ("compute_metrics", 5),
            ("data_collator", "padding"),
            ("callbacks", 5),
            ("callbacks", [5]),
            ("callbacks", [dict]),
            ("callbacks", TrainerCallback),
            ("optimizers", 5),
            ("optimizers", (None,)),
            ("optimizers", (5, 5)),
            ("peft_config", {"r": 4}),
            ("peft_config", 5),
        )
    ),
    Case(
        "metrics of nothing",
        lambda f: make(f, compute_metrics=lambda _: None, eval_dataset=tiny_rows(2)).evaluate(),
        "compute_metrics must return a dictionary, got NoneType",
        TypeError,
    ),
    *(
        Case(
            f"a collator that returns {made!r}",
            lambda f, made=made: make(f, data_collator=lambda _: made).train(),
            "data_collator must return what prefopt.data.PreferenceCollator does",
            TypeError,
        )
        for made in ([], {"input_ids": 1})
    ),
    Case(
        "evaluation on a stream of which nothing is left",
        lambda f: make(f, max_length=20).evaluate(
            stream([{"prompt": "w3 " * 50, "chosen": "w4", "rejected": "w5"}] * 9)()
        ),
        "eval data: no row is left",
    ),
    refused(
        "evaluations without data",
        "eval_strategy='steps' needs an eval_dataset",
        eval_strategy="steps",
        eval_steps=1,
    ),
    Case(
        "evaluation without data", lambda f: make(f).evaluate(), "needs an eval_dataset", ValueError
    ),
    Case(
        "evaluation by a name",
        lambda f: make(f).evaluate("b"),
        "there is no eval_dataset 'b'",
        ValueError,
    ),
    Case(
        "evaluation by a wrong name",
        lambda f: make(f, eval_dataset={"a": tiny_rows(2)}).evaluate("b"),
        "there is a",
        ValueError,
    ),
    Case(
        "evaluation on a list",
        lambda f: make(f).evaluate([1]),
        "must be a datasets.Dataset",
        TypeError,
    ),
    Case(
        "evaluation on other kinds",
        lambda f: make(f).evaluate(tiny_rows(2, "unpaired")),
        "the data is unpaired",
        DataError,
    ),
    Case(
        "output_dir is a file",
        lambda f: [(f / "out").write_text(""), make(f)],
        "is a file",
        ValueError,
    ),
    Case(
        "a store in a file",
        lambda f: [(f / "x").write_text(""), make(f, reference_cache_dir=str(f / "x"))],
        "kept in memory, for this run only",
        None,
    ),
    *(
        Case(
            f"resume from {given!r}",
            lambda f, given=given: make(f).train(given),
            "there is no checkpoint",
            ValueError,
        )
        for given in ("nowhere", True, 5, "")
    ),
    Case(
        "resume from an empty folder",
        lambda f: [(f / "x").mkdir(), make(f).train(str(f / "x"))],
        "it is empty",
        ValueError,
    ),
]

CASES = [*TOKENIZERS, *MODELS, *DATASETS, *MIXTURES, *HOOKS]
