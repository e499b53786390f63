"""Does every method learn from real preferences? Six losses on Anthropic HH, from one small start.

    python benchmarks/hh_real.py [--allow-dirty] [--jobs 2]

A BPE tokenizer and a Llama of two million parameters are made from the texts in ../shared/data and
fitted to the chosen answers of 2000 pairs. From that same start, each method is trained with
``PreferenceTrainer``, in a process of its own, and asked about the 354 other pairs. It is also
trained on human rankings, human thumbs, and conversations with a chat template. The table, all
numbers and a chart go to ``benchmarks/results/hh_real.*``.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hh_data
import torch
from datasets import Dataset
from hh_report import write_results
from record import RESULTS, ROOT, commit, environment
from rich.console import Console
from rich.progress import Progress, track
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prefopt import PreferenceConfig, PreferenceTrainer
from prefopt.data import prepare_dataset
from prefopt.evaluation import completion_logps

MAX_LENGTH = 224  # tokens of prompt + completion; 5% of the texts are longer
START_LENGTH = 320
BOOK_TOKENS = 150_000
WINDOW = 256
TRAINING: dict[str, Any] = {
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_length": MAX_LENGTH,
}

# Chosen on 300 of the 2000 training rows, by the accuracy of the log-ratio after DPO on 640 others
# (SLiC's learning rate after SLiC). At beta 0.1 a margin of a nat hardly bends the loss, so nothing
# corrects noise; from a learning rate of 3e-4 on, all log-probs fall, the more the longer an answer
# is, and bury what was learnt. The other losses take over DPO's choice.
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"data": "hh", "loss_type": "dpo", "beta": 1.0},
    # Eq. 17 as printed: with means over tokens, the log-ratio of a whole answer says nothing.
    "ipo": {"data": "hh", "loss_type": "ipo", "beta": 1.0, "loss_kwargs": {"normalize": "sum"}},
    "kto (pairs)": {"data": "hh", "loss_type": "kto", "beta": 1.0},
    "kto (one thumb)": {"data": "hh one thumb", "loss_type": "kto", "beta": 1.0},
    "slic": {"data": "hh", "loss_type": "slic", "learning_rate": 5e-5},
    # The start is fitted already: the preferences count as much as the likelihood.
    "orpo": {"data": "hh", "loss_type": "orpo", "loss_kwargs": {"lambda": 1.0}},
    "discopop": {"data": "hh", "loss_type": "discopop", "beta": 1.0},
    "sft (control)": {"data": "hh", "loss_type": "sft"},
    "dpo on rankings": {
        "data": "rankings",
        "loss_type": "dpo",
        "beta": 1.0,
        "num_train_epochs": 3,
    },
    # 265 thumbs up, 71 down: Eq. 8 of the KTO paper asks for a weight between 2.8 and 3.7.
    "kto on thumbs": {
        "data": "votes",
        "loss_type": "kto",
        "beta": 1.0,
        "undesirable_weight": 3.0,
        "num_train_epochs": 3,
    },
    "dpo on conversations": {
        "data": "demo",
        "loss_type": "dpo",
        "beta": 1.0,
        "num_train_epochs": 3,
    },
}

console = Console(stderr=True)


def main() -> None:
    """Run everything, or one stage of it in a process of its own."""
    options = _parse()
    if options.stage == "start":
        make_start(options)
    elif options.stage is not None:
        train_method(options, options.stage)
    else:
        run_all(options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--allow-dirty", action="store_true", help="measure changed files too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="methods at a time")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="a sentence for the record")
    parser.add_argument("--validation", action="store_true", help="hold out rows of the 2000")
    parser.add_argument("--set", type=json.loads, default={}, help="options of every method, JSON")
    parser.add_argument("--work", type=Path, help="folder for models; default: a temporary one")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    return parser.parse_args()


# Stages -------------------------------------------------------------------------------------------


def run_all(options: argparse.Namespace) -> None:
    """Make the start, train every method in a process of its own, and write the results."""
    record = environment(
        seed=options.seed, dtype="float32", threads=1, allow_dirty=options.allow_dirty
    )
    record |= {"jobs": options.jobs, "note": options.note, "validation": options.validation}
    with tempfile.TemporaryDirectory() as scratch:
        options.work = options.work or Path(scratch)
        options.work.mkdir(parents=True, exist_ok=True)
        if not (options.work / "start.json").exists():
            _run_stage(options, "start", threads=options.jobs)
        begin = time.perf_counter()
        with Progress(console=console) as progress, ThreadPoolExecutor(options.jobs) as pool:
            task = progress.add_task("Training every method", total=len(options.methods))
            results = []
            for result in pool.map(lambda name: _run_stage(options, name, 1), options.methods):
                results.append(result)
                progress.advance(task)
                with (options.work / "results.jsonl").open("a") as lines:
                    lines.write(json.dumps(result) + "\n")
        start = json.loads((options.work / "start.json").read_text())
    record["training"] = TRAINING | {"num_train_epochs": 1}
    record["seconds"] = round(time.perf_counter() - begin)
    name = "hh_real_validation" if options.validation else "hh_real"
    folder = options.work if options.validation else RESULTS
    write_results(folder / name, record, start, results)
    console.print((folder / f"{name}.md").read_text(), markup=False)


def _run_stage(options: argparse.Namespace, stage: str, threads: int) -> dict[str, Any]:
    """Run one stage in a fresh process, and return what it wrote."""
    command = [sys.executable, __file__, "--stage", stage, "--work", str(options.work)]
    command += ["--seed", str(options.seed), "--set", json.dumps(options.set)]
    command += ["--validation"] if options.validation else []
    log = options.work / f"{stage}.log"
    with log.open("w") as output:
        # The start's progress bars are shown; methods run side by side and write to their logs.
        streams: dict[str, Any] = {} if stage == "start" else {"stdout": output, "stderr": output}
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, **streams
        )
    if done.returncode:
        sys.exit(f"stage {stage!r} failed:\n{log.read_text()[-3000:]}")
    result: dict[str, Any] = json.loads((options.work / f"{stage}.json").read_text())
    return result


def make_start(options: argparse.Namespace) -> None:
    """Make the tokenizer and fit the model all methods start from."""
    torch.manual_seed(options.seed)
    shared = _shared()
    # Without the validation rows: one start for choosing hyper-parameters and for measuring.
    pairs = hh_data.hh_pairs(shared, options.seed, validation=True).train
    transcripts = [pair["prompt"] + pair["chosen"] for pair in pairs]
    books = hh_data.corpora(shared)
    template = hh_data.chat_template(shared)
    tokenizer = hh_data.build_tokenizer([*transcripts, *books], template)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    begin = time.perf_counter()
    texts = _pack(tokenizer, books)[: BOOK_TOKENS // WINDOW]
    texts = torch.cat(
        [texts, _pack(tokenizer, transcripts + _conversations(shared, tokenizer, options.seed))]
    )
    loss = _fit_texts(model, texts)
    trainer = PreferenceTrainer(
        model,
        args=_arguments(
            options, {"loss_type": "sft", "learning_rate": 1e-3, "max_length": START_LENGTH}
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": p["prompt"], "completion": p["chosen"], "label": True} for p in pairs]
        ),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(options.work / "model"))
    fitted = {
        "commit": commit(),
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "text_tokens": texts.numel(),
        "text_loss": loss,
        "seconds": time.perf_counter() - begin,
        "peak_rss_bytes": _peak_rss_bytes(),
    }
    (options.work / "start.json").write_text(json.dumps(fitted))


def _pack(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return the texts one after the other, cut into windows; (windows, WINDOW)."""
    ids = [i for text in texts for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    return torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)


def _conversations(shared: Path, tokenizer: Any, seed: int) -> list[str]:
    """Return conversations in the chat template, of the rows that are trained on only."""
    rows = [row for row in hh_data.votes(shared, seed)[0].train if row["label"]]
    return [
        tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        for row in rows
    ]


def _fit_texts(model: Any, windows: torch.Tensor, batch_size: int = 8) -> float:
    """Fit a model to windows of text, once; return the mean loss of the last tenth in nats."""
    order = torch.randperm(len(windows))
    batches = order[: len(order) // batch_size * batch_size].view(-1, batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=len(batches), pct_start=0.1, cycle_momentum=False
    )
    losses = []
    for batch in track(batches, "Fitting texts", console=console):
        loss = model(input_ids=windows[batch], labels=windows[batch]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def train_method(options: argparse.Namespace, name: str) -> None:
    """Train one method from the start, and write what it thinks of the held-out rows."""
    settings = METHODS[name] | options.set
    begin = time.perf_counter()
    train, held_out, facts = _data(settings.pop("data"), options)
    tokenizer = AutoTokenizer.from_pretrained(options.work / "model")
    trainer = PreferenceTrainer(
        AutoModelForCausalLM.from_pretrained(options.work / "model"),
        args=_arguments(options, settings),
        train_dataset=Dataset.from_list(train),
        processing_class=tokenizer,
    )
    rows = prepare_dataset(Dataset.from_list(held_out), tokenizer, max_length=MAX_LENGTH).dataset
    before = _score(trainer.model, rows)
    train_begin = time.perf_counter()
    trainer.train()
    train_seconds = time.perf_counter() - train_begin
    result = {
        "method": name,
        "settings": settings,
        "objective": trainer.objective.name,
        "facts": facts,
        "train_report": trainer.data_reports["train"].render(),
        "train_rows": trainer.data_reports["train"].kept,
        "held_out_rows": len(rows),
        "held_out_set_aside": len(held_out) - len(rows),
        "train_seconds": train_seconds,
        "peak_rss_bytes": _peak_rss_bytes(),
        "before": before,
        "after": _score(trainer.model, rows),
        "lengths": [[len(ids) for ids in row] for row in rows["completion_ids"]],
        "ranks": rows["ranks"][:],
        "desirable": rows["desirable"][:],
        "trees": rows["tree"][:] if "tree" in rows.column_names else None,
        "history": trainer.state.log_history,
        "seconds": time.perf_counter() - begin,
    }
    (options.work / f"{name}.json").write_text(json.dumps(result))


def _data(name: str, options: argparse.Namespace) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Return the rows to train on, those held out, and what is worth telling of them."""
    shared, seed = _shared(), options.seed
    if name.startswith("hh"):
        train, held_out = hh_data.hh_pairs(shared, seed, validation=options.validation)
        return hh_data.one_thumb(train, seed) if "thumb" in name else train, held_out, {}
    if name == "votes":
        split, ties = hh_data.votes(shared, seed)
        return split.train, split.held_out, {"ties_left_out": ties}
    split = hh_data.rankings(shared, seed) if name == "rankings" else hh_data.demo(shared, seed)
    return split.train, split.held_out, {}


def _arguments(options: argparse.Namespace, settings: dict[str, Any]) -> PreferenceConfig:
    fields = {"num_train_epochs": 1} | TRAINING | settings
    return PreferenceConfig(
        output_dir=str(options.work / "output"),
        seed=options.seed,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        **fields,
    )


def _score(model: Any, rows: Any) -> list[list[float]]:
    """Return the log-prob of each completion of each row, by the plain padded forward; nats."""
    counts = [len(row) for row in rows["completion_ids"]]
    prompts = [
        ids for ids, count in zip(rows["prompt_ids"], counts, strict=True) for _ in range(count)
    ]
    completions = [ids for row in rows["completion_ids"] for ids in row]
    # Batches of like lengths need little padding.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(completions[i]))
    model.eval()
    logps = completion_logps(
        model, [prompts[i] for i in order], [completions[i] for i in order], batch_size=16
    )
    by_place = dict(zip(order, logps.tolist(), strict=True))
    flat = iter(by_place[place] for place in range(len(order)))
    return [[next(flat) for _ in range(count)] for count in counts]


def _peak_rss_bytes() -> int:
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _shared() -> Path:
    return Path(os.environ.get("PREFOPT_SHARED", ROOT.parent / "shared"))


if __name__ == "__main__":
    main()
