"""``prefopt chat``: answers in a script, in a terminal, of one model and of two."""

import io
import sys

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.cli import chat
from prefopt.evaluation import generate
from tests.models import move

QUICK = ("--max_new_tokens", "8", "--temperature", "0.7", "--seed", "5")


@pytest.fixture(scope="module")
def adapter(model_folder, tmp_path_factory):
    """An adapter of the tiny model that changes what it says."""
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules="all-linear")
    model = move(get_peft_model(base, config))
    model.save_pretrained(folder)
    return folder


def answer(folder, turns, number=0):
    """Return what a model says at the end of a conversation, asked in Python."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = {"temperature": 0.7, "max_new_tokens": 8, "seed": 5}
    return generate(model, tokenizer, [turns] * (number + 1), **settings)[number].text


def user(text):
    return {"role": "user", "content": text}


def test_one_question_is_answered_as_by_generate(prefopt, model_folder):
    result = prefopt("chat", model_folder, "--prompt", "Why?", *QUICK)
    assert result.code == 0, result.err
    said = answer(model_folder, [user("Why?")])
    assert result.out.startswith(said)
    assert result.out.removeprefix(said).strip() in ("", "[cut after 8 tokens]")


def test_lines_of_a_script_are_one_conversation_until_it_says_new(
    prefopt, model_folder, monkeypatch
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("One?\nTwo?\n/new\nTwo?\n/exit\nThree?\n"))
    result = prefopt("chat", model_folder, "--system", "Be brief.", *QUICK)
    assert result.code == 0, result.err
    system = {"role": "system", "content": "Be brief."}
    first = answer(model_folder, [system, user("One?")])
    turns = [system, user("One?"), {"role": "assistant", "content": first}, user("Two?")]
    second = answer(model_folder, turns, 1)
    third = answer(model_folder, [system, user("Two?")], 2)
    parts = result.out.split("> ")
    for part, question, said in zip(
        parts[1:], ("One?", "Two?", "Two?"), (first, second, third), strict=True
    ):
        assert part.startswith(f"{question}\n{said}")


def test_an_adapter_answers_beside_its_start(prefopt, model_folder, adapter):
    result = prefopt("chat", adapter, "--compare", model_folder, "--prompt", "Why?", *QUICK)
    assert result.code == 0, result.err
    _, first, second = result.out.split("--- ")[:1] + result.out.split(" ---\n")[1:]
    said = answer(model_folder, [user("Why?")])
    assert second.startswith(said)
    assert not first.startswith(said)


def test_in_a_terminal_answers_grow_in_columns(prefopt, model_folder, adapter, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    result = prefopt("chat", adapter, "--compare", model_folder, "--prompt", "Why?", *QUICK)
    assert result.code == 0, result.err
    assert "─┬─" in result.out or "┳" in result.out


def test_what_is_stopped_or_has_no_room_is_forgotten(model_folder, monkeypatch, capsys):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    speaker = chat.Speaker("it", AutoModelForCausalLM.from_pretrained(model_folder), tokenizer)
    monkeypatch.setattr(chat.sys, "stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    typed = iter(["a" * 600, "stop me", "Why?"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, "/exit"))
    tell = chat._print_piece

    def stopping(text):
        if speaker.turns == [] and not told:
            told.append(text)
            raise KeyboardInterrupt
        tell(text)

    told: list = []
    monkeypatch.setattr(chat, "_print_piece", stopping)
    options = chat.make_parser().parse_args([str(model_folder), *QUICK])
    chat._converse([speaker], options)
    assert [turn["content"] for turn in speaker.turns][:1] == ["Why?"]
    assert len(speaker.turns) == 2
    out = capsys.readouterr().out
    assert "fill all 512 that the model reads at most; the question is forgotten" in out
    assert "(stopped; the question is forgotten" in out


def test_a_model_without_a_template_goes_on_with_the_text(prefopt, model_folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    result = prefopt("chat", tmp_path, "--prompt", "2 + 2 =", *QUICK)
    assert result.code == 0, result.err
    assert "has no chat template: it goes on with your text" in result.err
    assert result.out.startswith(answer(tmp_path, "2 + 2 ="))
    refused = prefopt("chat", tmp_path, "--prompt", "2 + 2 =", "--system", "Be brief.")
    assert (refused.code, "no chat template" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max_new_tokens", "0"), "--max_new_tokens must be at least 1"),
        (("--temperature", "-1"), "temperature must be at least 0"),
        (("--prompt", "a" * 600), "fill all 512"),
    ],
)
def test_mistakes_are_told(prefopt, model_folder, words, message):
    result = prefopt("chat", model_folder, "--prompt", "a", *words)
    assert result.code == 2
    assert message in result.err
    same = prefopt("chat", model_folder, "--compare", model_folder, "--prompt", "a")
    assert (same.code, "names the same model" in same.err) == (2, True)
