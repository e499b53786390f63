"""Commands that are printed after training; that they work is tested with ``prefopt train``."""

from argparse import Namespace

from prefopt.cli.next_steps import next_steps
from prefopt.cli.rows import DataArguments


def after(is_adapter=False, **changes):
    """Return the commands that are printed after a run with these options, by title."""
    model = {"model_name_or_path": "start", "model_revision": "main", "dtype": None}
    model |= {"load_in_4bit": False, "load_in_8bit": False}
    of_model = {name: changes.pop(name) for name in list(changes) if name in model}
    code = changes.pop("trust_remote_code", False)
    config = Namespace(output_dir="my run", trust_remote_code=code)
    data = DataArguments(**({"dataset_name": "rows.jsonl"} | changes))
    return dict(next_steps(data, config, Namespace(**(model | of_model)), is_adapter))


def asking(**changes):
    return after(**changes)["Ask it"]


def test_what_is_asked_is_what_the_run_named():
    start = "prefopt sample --model 'my run' --compare start"
    assert asking() == f"{start} --dataset rows.jsonl --max_prompts 3"
    assert asking(dataset_train_split="train[:9]").endswith("--max_prompts 3 --split 'train[:9]'")
    assert asking(dataset_name=None, datasets=["a", "b"]).endswith("--dataset a --max_prompts 3")
    for needs_more in ({"dataset_config": "c"}, {"dataset_streaming": True}):
        assert asking(**needs_more) == f"{start} --prompts 'What can you tell me?'"
    assert "--compare" not in asking(model_revision="v2")


def test_models_are_loaded_as_in_the_run():
    loaded = {"dtype": "bfloat16", "load_in_4bit": True, "trust_remote_code": True}
    for command in after(is_adapter=True, **loaded).values():
        assert command.endswith("--dtype bfloat16 --load_in_4bit --trust_remote_code")


def test_only_an_adapter_is_merged():
    assert after()["Talk to it"] == "prefopt chat 'my run' --compare start"
    assert set(after()) == {"Talk to it", "Ask it"}
    (merging,) = set(after(is_adapter=True).values()) - set(after().values())
    assert merging == "prefopt merge 'my run' 'my run-merged'"
