"""The files of docs/examples/train: each trains, on a tiny model and a few rows."""

from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "docs" / "examples" / "train"
FILES = sorted(FOLDER.glob("*.yaml"))

# What makes a run small; all else stays as in the file.
SMALL = {
    "eval_rows": 4,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_length": 256,
    "eval_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_trains(prefopt, model_folder, data_files, tmp_path, path):
    options = yaml.safe_load(path.read_text())
    if "load_in_4bit" in options:
        pytest.importorskip("bitsandbytes")
    # By the name of a dataset, the kind of its rows.
    rows = lambda name: str(data_files["unpaired" if "kto" in name else "paired"])  # noqa: E731
    if "dataset" in options:
        options["dataset"] = rows(options["dataset"])
    for entry in options.get("datasets", []):
        entry["path"] = rows(entry["path"])
    options |= {"model": str(model_folder), "output_dir": str(tmp_path / "out")}
    if "sample_prompts" in options:
        options["sample_tokens"] = 2
    options |= SMALL
    if options["eval_strategy"] == "epoch":
        del options["eval_steps"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    result = prefopt("train", "--config", tmp_path / "run.yaml")
    assert result.code == 0, result.err
    assert "eval_loss" in result.out
    assert (tmp_path / "out" / "README.md").is_file()


def test_each_example_says_how_it_is_started_and_is_in_the_pages():
    page = (FOLDER.parents[1] / "quickstart.md").read_text()
    assert {path.stem for path in FILES} == {
        *("full", "lora", "qlora", "kto", "orpo", "simpo", "mixture", "several_gpus")
    }
    for path in FILES:
        assert f"-m prefopt train --config {path.name}" in path.read_text() or (
            f"#   prefopt train --config {path.name}" in path.read_text()
        )
        assert path.name in page
