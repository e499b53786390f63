"""Answers while training: what is asked, when, beside what, and where it is told."""

import json

import pytest
from peft import LoraConfig
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from prefopt.data import DataError
from prefopt.training.samples import FILE, _track, read_sample_prompts
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import trainer

PROMPTS = ["w5 w6", "w7 w8 w9"]


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def greedy(model, prompt, tokens):
    """Return the likeliest answer, by hand."""
    import torch

    tokenizer = tiny_tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    for _ in range(tokens):
        best = model(ids).logits[0, -1].argmax().reshape(1, 1)
        ids = torch.cat([ids, best], 1)
        if best == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


def test_the_policy_answers_at_its_start_every_so_often_and_at_the_end(tmp_path, capsys):
    start = [greedy(tiny_model("llama"), prompt, 4) for prompt in PROMPTS]
    run = trainer(
        *(tmp_path, tiny_rows(8)),
        **{"sample_prompts": PROMPTS, "sample_every": 2, "sample_tokens": 4, "max_steps": 3},
    )
    run.train()
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [0, 0, 2, 2, 3, 3]
    assert [line["answer"] for line in found[:2]] == start
    assert [line["answer"] for line in found[-2:]] == [
        greedy(run.model.eval(), prompt, 4) for prompt in PROMPTS
    ]
    said = capsys.readouterr().err
    assert said.count("what the policy answers") == 2
    assert f"start   {start[0]}" in said


def test_asking_changes_nothing_of_training(tmp_path):
    losses = []
    for options in ({}, {"sample_prompts": PROMPTS, "sample_every": 1, "sample_tokens": 3}):
        run = trainer(tmp_path, tiny_rows(8), gradient_checkpointing=True, **options)
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0] == losses[1]


def test_a_run_that_goes_on_remembers_the_answers_of_its_start(tmp_path, capsys):
    options = {"sample_prompts": PROMPTS, "sample_every": 1, "sample_tokens": 3}
    options |= {"save_strategy": "steps", "save_steps": 1}
    for steps in (1, 2):
        run = trainer(
            tmp_path,
            tiny_rows(8),
            max_steps=steps,
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=2),
            **options,
        )
        run.train(resume_from_checkpoint=steps == 2)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [0, 0, 1, 1, 2, 2]
    assert f"start   {found[0]['answer']}" in capsys.readouterr().err.rpartition("step 2")[2]


def test_prompts_are_texts_lines_or_rows(tmp_path):
    assert read_sample_prompts("Why?") == ["Why?"]
    (tmp_path / "p.txt").write_text("Why?\n\nHow?\n")
    assert read_sample_prompts([str(tmp_path / "p.txt")]) == ["Why?", "How?"]
    turns = [{"role": "user", "content": "Why?"}]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": turns}) + "\n")
    assert read_sample_prompts(str(tmp_path / "p.jsonl")) == [turns]
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "Why?"}) + "\n")
    with pytest.raises(ValueError, match="has neither 'prompt' nor 'messages', but question"):
        read_sample_prompts(str(tmp_path / "q.jsonl"))
    with pytest.raises(ValueError, match="there is no prompt"):
        read_sample_prompts([])


def test_text_is_what_a_user_says_where_there_is_a_template(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}w50 {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}w60 {% endif %}"
    )
    run = trainer(
        tmp_path,
        tiny_rows(8),
        processing_class=tokenizer,
        **{"sample_prompts": ["w5"], "sample_tokens": 4, "max_steps": 1},
    )
    run.train()
    assert lines(tmp_path)[0]["answer"] == greedy(tiny_model("llama"), "w50 w5 w60", 4)


def test_an_answer_ends_where_the_template_ends_a_turn(tmp_path):
    first, turn, *_ = greedy(tiny_model("llama"), "w50 w5", 4).split()
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [turn]})
    assert tokenizer.eos_token != turn != first
    said = "{% for m in messages %}w50 {{ m['content'] }} "
    tokenizer.chat_template = (
        f"{said}{{% if m.role == 'assistant' %}}{turn}{{% endif %}}{{% endfor %}}"
    )
    run = trainer(
        *(tmp_path, tiny_rows(8)),
        processing_class=tokenizer,
        **{"sample_prompts": ["w5"], "sample_tokens": 4, "max_steps": 1},
    )
    run.train()
    assert lines(tmp_path)[0]["answer"] == first


def test_what_cannot_be_asked_is_told_before_training(tmp_path):
    with pytest.raises(ValueError, match="sample_every needs sample_prompts"):
        trainer(tmp_path, tiny_rows(8), sample_every=2)
    run = trainer(tmp_path, tiny_rows(8), sample_prompts=[[{"role": "nobody", "text": "w5"}]])
    with pytest.raises(DataError):
        run.train()


class _Recorder:
    """Stands in for the package of a tracker."""

    def __init__(self, name):
        self.__name__ = name
        self.logged = []

    def Table(self, columns=None, data=None, dataframe=None):
        if dataframe is None:
            return [columns, data]
        return [list(dataframe.columns), dataframe.values.tolist()]

    def log(self, values):
        self.logged.append(values)

    def add_text(self, tag, text, step):
        self.logged.append((tag, text, step))

    def flush(self):
        pass


def test_trackers_get_tables_or_text():
    rows = [("asked", "before", "after")]
    rows_of = [["step", "prompt", "start", "now"], [[7, "asked", "before", "after"]]]
    table = {"samples": rows_of, "train/global_step": 7}
    for kind, attribute, name in (
        (WandbCallback, "_wandb", "wandb"),
        (TrackioCallback, "_trackio", "trackio"),
    ):
        tracker, package = kind.__new__(kind), _Recorder(name)
        setattr(tracker, attribute, package)
        _track(tracker, 7, rows)
        assert package.logged == [table]
    tracker, writer = TensorBoardCallback.__new__(TensorBoardCallback), _Recorder("tensorboard")
    tracker.tb_writer = writer
    _track(tracker, 7, rows)
    ((tag, text, step),) = writer.logged
    assert (tag, step) == ("samples/0", 7)
    assert all(word in text for word in rows[0])
    _track(object(), 7, rows)  # any other callback
