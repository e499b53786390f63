"""``prefopt train``: from names to a saved model, and what it says to mistakes."""

import json
import os
import re
import shlex
import textwrap
from dataclasses import dataclass, fields
from itertools import pairwise

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefopt.cli import train
from prefopt.cli.errors import UserError
from prefopt.training.loading import dtype_of
from tests.processes import run_script

FAST = (
    "--report_to=none",
    "--use_cpu",
    "--disable_tqdm=true",
    "--max_steps=2",
    "--per_device_train_batch_size=4",
)


def parsed(*argv):
    """Return the three groups of options of a command line."""
    return train.parse(train.make_parser(), [str(item) for item in argv])


def load(folder):
    """Return the saved model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder)


def moved(folder, model_folder) -> bool:
    """Return whether a saved model differs from the one it started from."""
    pairs = zip(load(folder).parameters(), load(model_folder).parameters(), strict=True)
    return any(not a.equal(b) for a, b in pairs)


@pytest.mark.parametrize(
    ("kind", "loss"), [("paired", "dpo"), ("unpaired", "kto"), ("ranked", "ipo")]
)
def test_training_on_each_kind_of_data_saves_a_model_that_loads(
    prefopt, model_folder, data_files, tmp_path, kind, loss
):
    result = prefopt(
        *("train", "--model", model_folder, "--dataset", data_files[kind], "--loss_type", loss),
        *("--output_dir", tmp_path, "--learning_rate", "1e-2", "--eval_fraction", "0.25", *FAST),
    )
    assert result.code == 0, result.err
    assert re.search(r"train_loss +│ +[\d.]+", result.out)
    assert re.search(r"eval_loss +│ +[\d.]+", result.out)
    assert str(tmp_path) in result.out
    assert moved(tmp_path, model_folder)
    assert "train_loss" in json.loads((tmp_path / "train_results.json").read_text())
    assert "eval_loss" in json.loads((tmp_path / "eval_results.json").read_text())


def test_lora_saves_an_adapter_that_the_printed_code_loads(
    prefopt, model_folder, data_files, tmp_path
):
    result = prefopt(
        *("train", "--model", model_folder, "--dataset", data_files["paired"]),
        *("--use_peft", "--lora_r", "2", "--output_dir", tmp_path, *FAST),
    )
    assert result.code == 0, result.err
    assert (tmp_path / "adapter_config.json").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    namespace = {}
    code = result.out.partition("Load it in Python:\n")[2].partition("Talk to it")[0]
    exec(textwrap.dedent(code), namespace)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    for name, weight in namespace["model"].named_parameters():
        if "lora_" in name:
            assert weight.equal(saved[name.replace(".default", "")])


@pytest.mark.parametrize("peft", [False, True])
def test_the_commands_that_are_printed_talk_to_what_was_trained_ask_it_and_merge_it(
    prefopt, model_folder, data_files, tmp_path, peft
):
    out = tmp_path / "with spaces"
    result = prefopt(
        *("train", "--model", model_folder, "--dataset", data_files["paired"]),
        *("--output_dir", out, "--learning_rate", "1e-2", *FAST),
        *(("--use_peft", "--lora_r", "2") if peft else ()),
    )
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    commands = {
        title: shlex.split(command)[1:]
        for title, command in pairwise(lines)
        if command.startswith("  prefopt ")
    }
    asked = prefopt(*commands.pop("Ask it:"))
    assert asked.code == 0, asked.err
    assert asked.out.count("--- prompt ") == 3
    for model in (out, model_folder):
        assert asked.out.count(f"--- {model} (") == 3
    talked = prefopt(*commands.pop("Talk to it:"), "--prompt", "Why?", "--max_new_tokens", "3")
    assert talked.code == 0, talked.err
    assert [f"--- {model} ---" in talked.out for model in (out, model_folder)] == [True, True]
    assert len(commands) == peft
    for command in commands.values():
        assert prefopt(*command).code == 0
        assert load(command[2])


def test_a_run_that_is_shared_ends_with_our_card_on_the_hub(
    prefopt, model_folder, data_files, tmp_path, hub
):
    result = prefopt(
        *("train", "--model", model_folder, "--dataset", data_files["paired"], "--use_peft"),
        *("--output_dir", tmp_path, "--push_to_hub", "--hub_model_id", "me/aligned"),
        *("--hub_token", "hf_secret", "--eval_fraction", "0.25", *FAST),
    )
    assert result.code == 0, result.err
    card = hub.repos["me/aligned"]["README.md"].decode()
    for said in ("library_name: peft", "`pairs.jsonl.gz`", "## Evaluation after 2 steps"):
        assert said in card
    assert str(tmp_path) not in card
    assert "Shared as https://huggingface.co/me/aligned" in result.out


def test_every_option_of_configuration_and_model_is_there():
    from trl import ModelConfig

    from prefopt.config import PreferenceConfig

    options = {name for action in train.make_parser()._actions for name in action.option_strings}
    names = {item.name for cls in (PreferenceConfig, ModelConfig) for item in fields(cls)}
    assert {f"--{name}" for name in names} <= options
    assert {"--model", "--dataset", "--config"} <= options


def test_options_reach_their_places(model_folder, tmp_path):
    data_args, config, model_args = parsed(
        *("--model", model_folder, "--dataset=rows.jsonl", "--output_dir", tmp_path),
        *("--loss_type", "dpo + 0.2*sft", "--beta", "0.3", "--loss_kwargs", '{"sft": {}}'),
        *(
            "--use_peft",
            "--lora-r",
            "4",
            "--load_in_4bit",
            "--max_length",
            "none",
            "--no_disable_dropout",
        ),
        *("--report_to=none", "--diagnostics"),
    )
    assert config.diagnostics
    assert data_args.dataset_name == "rows.jsonl"
    assert model_args.model_name_or_path == str(model_folder)
    assert (model_args.lora_r, model_args.load_in_4bit) == (4, True)
    assert config.objective.name == "dpo + 0.2*sft"
    assert (config.beta, config.max_length, config.disable_dropout) == (0.3, None, False)


def test_several_losses_and_weights_are_lists(tmp_path):
    _, config, _ = parsed(
        *("--model_name_or_path", "m", "--dataset_name", "d", "--output_dir", tmp_path),
        *("--loss_type", "sigmoid", "sft", "--loss_weights", "1", "0.5", "--report_to=none"),
    )
    assert config.objective.name == "dpo + 0.5*sft"


def test_a_file_gives_options_and_the_command_line_goes_before_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFOPT_TEST_VARIABLE", "before")
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: m\ndataset: d\nloss_type: ipo\nbeta: 0.5\nlearning_rate: 1e-5\nlora-r: 8\n"
        "use_peft: true\n"
        "loss_kwargs:\n  normalize: sum\nreport_to: none\nenv:\n  PREFOPT_TEST_VARIABLE: 7\n"
        f"output_dir: {tmp_path}\n"
    )
    for spelling in (["--config", path], [f"--config={path}"]):
        data_args, config, model_args = parsed(*spelling, "--beta", "0.2")
        assert (data_args.dataset_name, model_args.model_name_or_path) == ("d", "m")
        assert (config.beta, config.learning_rate, model_args.lora_r) == (0.2, 1e-5, 8)
        assert config.objective.terms[0].hyperparameters == {"normalize": "sum", "beta": 0.2}
    assert os.environ["PREFOPT_TEST_VARIABLE"] == "7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss_tipe: ipo", r"run.yaml: unknown option 'loss_tipe'; did you mean 'loss_type'"),
        ("model: a\nmodel_name_or_path: b", "the same option"),
        ("- ipo", "must map option names to values"),
        ("a: [", "is not valid YAML"),
        ("beta: two", "invalid float value: 'two'"),
        ("env: [A]", "env must map"),
        ("loss_type: xpo\nmodel: m\ndataset: d", "unknown loss 'xpo'"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(prefopt, tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    result = prefopt("train", "--config", path, "--report_to=none")
    assert result.code == 2
    assert re.search(message, result.err)
    assert "Traceback" not in result.err


MODEL_AND_DATA = ("--model", "MODEL", "--dataset", "DATA")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--dataset", "DATA"), "--model is missing"),
        (("--model", "MODEL"), "--dataset is missing"),
        ((*MODEL_AND_DATA, "--bta", "1"), "unknown option '--bta'; did you mean '--beta'"),
        ((*MODEL_AND_DATA, "--bta=1"), "unknown option '--bta'; did you mean '--beta'"),
        (
            (*MODEL_AND_DATA, "--loss_type", "discopop", "--tau", "1"),
            "tau is a hyper-parameter of discopop: --loss_kwargs tau=1, or --discopop_tau 1\n",
        ),
        ((*MODEL_AND_DATA, "more"), "'more' belongs to no option"),
        ((*MODEL_AND_DATA, "--beta", "two"), "invalid float value: 'two'"),
        ((*MODEL_AND_DATA, "--beta", "-1"), "beta must be greater than 0.*got -1"),
        ((*MODEL_AND_DATA, "--loss_type", "ipoo"), "unknown loss 'ipoo'; did you mean 'ipo'"),
        ((*MODEL_AND_DATA, "--loss_type", "orpo", "--beta", "1"), "beta"),
        ((*MODEL_AND_DATA, "--loss_kwargs", "{tau"), "--loss_kwargs: not a JSON object"),
        ((*MODEL_AND_DATA, "--config", "nowhere.yaml"), "cannot read the config file: .*nowhere"),
        ((*MODEL_AND_DATA, "--eval_fraction", "1.5"), "eval_fraction must be in"),
        (
            (*MODEL_AND_DATA, "--dataset_train_split", "best"),
            "its only split is 'train', not 'best'",
        ),
        ((*MODEL_AND_DATA, "--eval_strategy", "epoch"), "there are no rows for them"),
        (("--model", "MODEL", "--dataset", "/no/rows.jsonl"), "/no/rows.jsonl"),
        (("--model", "/no/model", "--dataset", "DATA"), "/no/model"),
        (
            ("--model", "MODEL", "--dataset", "UNPAIRED", "--loss_type", "dpo"),
            "the data is unpaired",
        ),
        ((*MODEL_AND_DATA, "--load_in_4bit", "--load_in_8bit"), "8 bit and 4 bit"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_two(
    prefopt, model_folder, data_files, tmp_path, argv, message
):
    names = {
        "MODEL": str(model_folder),
        "DATA": str(data_files["paired"]),
        "UNPAIRED": str(data_files["unpaired"]),
    }
    argv = [names.get(item, item) for item in argv]
    result = prefopt("train", *argv, "--output_dir", tmp_path, *FAST)
    assert result.code == 2, result.err
    error = result.err[result.err.rindex("prefopt: error: ") :]
    assert re.search(message, error), error
    assert "Traceback" not in result.err
    assert "usage:" not in result.err


def test_a_failure_inside_training_is_not_blamed_on_the_user(
    prefopt, model_folder, data_files, tmp_path, monkeypatch
):
    from prefopt.training.trainer import PreferenceTrainer

    def fail(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr(PreferenceTrainer, "train", fail)
    with pytest.raises(KeyError, match="a bug"):
        prefopt(
            *("train", "--model", model_folder, "--dataset", data_files["paired"]),
            *("--output_dir", tmp_path, *FAST),
        )


def test_fields_that_both_have_are_the_configurations():
    @dataclass
    class Ours:
        beta: float = 1.0
        remote: bool = False

    @dataclass
    class Theirs:
        remote: bool = True
        size: int = 3

    rest = train._without_fields_of(Theirs, Ours)
    assert [item.name for item in fields(rest) if item.init] == ["size"]
    assert rest(size=4).size == 4
    assert rest().remote is True


def test_flags_of_the_model_reach_the_trainer(tmp_path):
    _, config, model_args = parsed(
        *("--model", "m", "--dataset", "d", "--output_dir", tmp_path, "--report_to=none"),
        *("--dtype", "bfloat16", "--model_revision", "abc", "--use_peft", "--lora_r", "3"),
        *("--load_in_4bit", "--model_init_kwargs", '{"revision": "def", "use_cache": false}'),
    )
    seen = train.run_arguments(config, model_args)
    assert seen["model"] == "m"
    options = seen["args"].model_init_kwargs
    quantization = options.pop("quantization_config")
    assert options == {
        "revision": "def",
        "dtype": "bfloat16",
        "use_cache": False,
    }
    assert seen["peft_config"].r == 3
    assert quantization.load_in_4bit is True


QUANTISED = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": "float32",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # packages that quantise warn of each other
@pytest.mark.parametrize("fields", [QUANTISED, {"quant_method": "quanto", "weights": "int8"}])
@pytest.mark.parametrize("where", ["yaml", "json"])
def test_a_quantisation_is_read_from_a_file_and_from_json(
    prefopt, model_folder, data_files, tmp_path, scored, fields, where
):
    """Its reference is the quantised base, filled by `prefopt cache` or in training alike."""
    pytest.importorskip("bitsandbytes" if fields is QUANTISED else "optimum.quanto")
    (tmp_path / "run.yaml").write_text(
        json.dumps({"model_init_kwargs": {"quantization_config": fields}})
    )
    given = {
        "yaml": ["--config", tmp_path / "run.yaml"],
        "json": ["--model_init_kwargs", json.dumps({"quantization_config": fields})],
    }
    options = [
        *("--model", model_folder, "--dataset", data_files["paired"], "--use_peft", *given[where]),
        *("--lora_r", "2", "--logging_steps", "1", "--output_dir", tmp_path / "out", *FAST),
    ]
    filled = prefopt("cache", "fill", *options)
    assert (filled.code, sum(scored)) == (0, 48), filled.err
    scored.clear()
    result = prefopt("train", *options)
    assert (result.code, scored) == (0, []), result.err
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["log_history"][0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert "quantization_config=" in result.out


def test_a_quantisation_that_is_none_is_one_message(prefopt, model_folder, data_files, tmp_path):
    result = prefopt(
        *("train", "--model", model_folder, "--dataset", data_files["paired"], *FAST),
        *("--model_init_kwargs", '{"quantization_config": {"load_in_5bit": true}}'),
        *("--output_dir", tmp_path),
    )
    assert result.code == 2
    assert "must say how to quantise: load_in_4bit or load_in_8bit" in result.err


def test_a_quantised_model_without_an_adapter_is_one_message(
    prefopt, model_folder, data_files, tmp_path
):
    pytest.importorskip("bitsandbytes")
    result = prefopt(
        *("train", "--model", model_folder, "--dataset", data_files["paired"], *FAST),
        *("--load_in_4bit", "--output_dir", tmp_path),
    )
    assert result.code == 2
    assert "--use_peft on the command line" in result.err


def test_latest_checkpoint_can_be_asked_for_on_the_command_line():
    assert train.checkpoint_of("true") is True
    assert train.checkpoint_of("True") is True
    assert train.checkpoint_of(None) is None
    assert train.checkpoint_of("out/checkpoint-2") == "out/checkpoint-2"


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "slic", "orpo", "discopop"])
def test_every_method_trains_on_real_pairs(prefopt, model_folder, shared_dir, tmp_path, loss):
    data = shared_dir / "data/preference/hh_helpful_base_test.jsonl.gz"
    result = prefopt(
        *("train", "--model", model_folder, "--dataset", data, "--loss_type", loss),
        *("--output_dir", tmp_path, "--dataset_train_split", "train[:64]"),
        *("--max_length", "512", "--learning_rate", "1e-3", *FAST),
    )
    assert result.code == 0, result.err
    assert moved(tmp_path, model_folder)


# The command line in a process that notes how many there are.
COUNTING = """
import os, sys
from pathlib import Path
from accelerate import PartialState
from prefopt.cli import main

code = main(sys.argv[2:])
world = PartialState().num_processes
Path(sys.argv[1], f"world-{os.environ['RANK']}").write_text(str(world))
sys.stdout.flush()
os._exit(code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, (0.5, 1.5)])
def test_two_processes_train_together_and_the_first_reports(
    model_folder, data_files, tmp_path, weights
):
    path = str(data_files["paired"])
    data = ["--dataset", path]
    if weights:
        entries = ({"path": path, "weight": weight} for weight in weights)
        data = ["--datasets", *map(json.dumps, entries)]
    counting = tmp_path / "counting.py"
    counting.write_text(COUNTING)
    done = run_script(
        *(str(counting), str(tmp_path), "train", "--model", str(model_folder)),
        *(*data, "--output_dir", str(tmp_path / "out"), *FAST),
        *("--learning_rate=1e-2", "--eval_fraction=0.25"),
        timeout_s=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("After training") == 1
    assert [(tmp_path / f"world-{rank}").read_text() for rank in range(2)] == ["2", "2"]
    assert moved(tmp_path / "out", model_folder)


@pytest.mark.slow
def test_an_adapter_is_trained_without_warnings_of_libraries(model_folder, data_files, tmp_path):
    done = run_script(
        *("-m", "prefopt", "train", "--model", str(model_folder), "--use_peft", *FAST),
        *("--dataset", str(data_files["paired"]), "--output_dir", str(tmp_path / "out")),
        processes=1,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.slow
def test_four_bit_with_lora_trains(prefopt, model_folder, data_files, tmp_path):
    pytest.importorskip("bitsandbytes")
    result = prefopt(
        *("train", "--model", model_folder, "--dataset", data_files["paired"], "--use_peft"),
        *("--load_in_4bit", "--lora_r", "2", "--output_dir", tmp_path, *FAST),
    )
    assert result.code == 0, result.err
    assert (tmp_path / "adapter_config.json").is_file()


# Models -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter_folder(model_folder, tmp_path_factory):
    """Return the folder of an adapter on the tiny model, which was trained."""
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    peft.get_peft_model(base, lora).save_pretrained(folder)
    return folder


def test_the_folder_of_an_adapter_is_a_model(prefopt, adapter_folder, data_files, tmp_path):
    data = data_files["paired"]
    command = ("train", "--model", adapter_folder, "--dataset", data, "--output_dir", tmp_path)
    result = prefopt(*command, *FAST, "--learning_rate", "1e-2")
    assert result.code == 0, result.err
    weights = [load_file(f / "adapter_model.safetensors") for f in (adapter_folder, tmp_path)]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    refused = prefopt(*command, *FAST, "--use_peft")
    assert refused.code == 2
    assert "leave peft_config out (--use_peft on the command line)" in refused.err


def test_an_encoder_decoder_is_refused_in_a_sentence(prefopt, data_files, tmp_path):
    transformers.T5Config().save_pretrained(tmp_path / "t5")
    result = prefopt(
        *("train", "--model", tmp_path / "t5", "--dataset", data_files["paired"]),
        *("--output_dir", tmp_path / "out", *FAST),
    )
    assert result.code == 2
    assert "is an encoder-decoder (T5Config)" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_either_name_of_the_dtype_goes_before_the_flag_that_is_always_set(tmp_path, name):
    _, config, model_args = parsed(
        *("--model", "m", "--dataset", "d", "--output_dir", tmp_path),
        *("--model_init_kwargs", json.dumps({name: "bfloat16"}), "--report_to=none"),
    )
    options = train.run_arguments(config, model_args)["args"].model_init_kwargs
    assert dtype_of(options) == torch.bfloat16


def test_errors_of_the_parser_are_user_errors():
    with pytest.raises(UserError, match="expected one argument"):
        parsed("--model")
