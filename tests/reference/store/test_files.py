"""What a model is loaded from: recognised without being loaded, and never mistaken."""

import json
import os
import time

import pytest
import transformers

from prefopt.reference.store import files
from prefopt.reference.store.database import Database
from prefopt.reference.store.files import digest_of_file, source_digest
from tests.models import tiny_model

HOUR_NS = 3_600_000_000_000


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "x.sqlite")
    yield database
    database.close()


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that were digested."""
    names = []
    original = files.blake2b
    monkeypatch.setattr(files, "blake2b", lambda **size: names.append(1) or original(**size))
    return names


@pytest.fixture
def settled(monkeypatch):
    """The clock an hour ahead: files were not changed just now."""
    now = time.time_ns
    monkeypatch.setattr(files.time, "time_ns", lambda: now() + HOUR_NS)


def test_a_file_is_digested_once(tmp_path, database, reads, settled):
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    digests = [digest_of_file(file, database) for _ in range(3)]
    assert len(set(digests)) == 1
    assert len(reads) == 1
    assert digest_of_file(file) == digests[0]  # without a database
    assert len(reads) == 2


def test_a_digest_is_that_of_the_content(tmp_path, database, settled):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"1234" * 2_000_000)  # more than is read at a time
    second.write_bytes(b"1234" * 2_000_000)
    assert digest_of_file(first, database) == digest_of_file(second, database)
    second.write_bytes(b"1234" * 1_999_999 + b"1235")
    assert digest_of_file(first, database) != digest_of_file(second, database)


def test_a_change_of_the_same_size_is_seen(tmp_path, database, reads, settled):
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    before = digest_of_file(file, database)
    os.utime(file, ns=(0, file.stat().st_mtime_ns - HOUR_NS))
    file.write_bytes(b"1235")
    assert digest_of_file(file, database) != before


def test_a_change_that_hides_its_time_is_seen(tmp_path, database, settled):
    """As archives and rsync do: the content's time is set back; that of the inode cannot be."""
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    stat = file.stat()
    before = digest_of_file(file, database)
    time.sleep(0.02)  # past the tick of the clock
    file.write_bytes(b"1235")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert digest_of_file(file, database) != before


def test_another_file_in_its_place_is_seen(tmp_path, database, reads, settled):
    file, other = tmp_path / "weights", tmp_path / "other"
    for path, content in ((file, b"1234"), (other, b"1235")):
        path.write_bytes(content)
        os.utime(path, ns=(0, 0))
    before = digest_of_file(file, database)
    other.rename(file)
    assert digest_of_file(file, database) != before


def test_a_change_within_a_tick_of_the_clock_is_seen(tmp_path, database, monkeypatch):
    """A file that was changed just now may change again and keep its time."""
    file = tmp_path / "weights"
    file.write_bytes(b"1234")
    stat = file.stat()
    before = digest_of_file(file, database)
    file.write_bytes(b"1235")

    class Coarse(type(file)):
        def resolve(self):
            return self

        def stat(self):
            return stat

        def open(self, mode):
            return file.open(mode)

    assert digest_of_file(Coarse(file), database) != before


# Models -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_is_what_its_files_are(folder, tmp_path, database):
    digest = source_digest(str(folder), {}, database)
    assert digest == source_digest(str(folder), {}, None)
    copied = tmp_path / "elsewhere"
    tiny_model("llama").save_pretrained(copied)
    assert source_digest(str(copied), {}, database) == digest
    (copied / "notes.txt").write_text("not of the model")
    assert source_digest(str(copied), {}, database) == digest


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_file_changes_it(folder, database, name):
    before = source_digest(str(folder), {}, database)
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    assert source_digest(str(folder), {}, database) != before


def test_code_beside_the_weights_is_part_of_it(folder, database):
    before = source_digest(str(folder), {}, database)
    (folder / "modeling_own.py").write_text("")
    assert source_digest(str(folder), {}, database) != before


def test_how_it_is_loaded_changes_it(folder, database, monkeypatch):
    quantised = transformers.BitsAndBytesConfig(load_in_4bit=True)
    options = [{}, {"dtype": "float32"}, {"dtype": "bfloat16"}, {"quantization_config": quantised}]
    digests = [source_digest(str(folder), option, database) for option in options]
    monkeypatch.setattr("prefopt.versions.version", lambda package: "0.1")
    digests.append(source_digest(str(folder), {}, database))
    monkeypatch.setattr(files, "ENGINE_VERSION", 99)
    digests.append(source_digest(str(folder), {}, database))
    assert len(set(digests)) == len(digests)


def test_a_subfolder_is_looked_into(folder, tmp_path, database):
    inside = source_digest(str(tmp_path), {"subfolder": "model"}, database)
    with (folder / "config.json").open("a") as config:
        config.write(" ")
    assert source_digest(str(tmp_path), {"subfolder": "model"}, database) != inside


def test_the_model_under_an_adapter_is_part_of_it(folder, tmp_path, database):
    """Loading the folder of an adapter loads both."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    written = {"base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(written))
    before = source_digest(str(adapter), {}, database)
    assert before is not None
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-2] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert source_digest(str(adapter), {}, database) not in (None, before)


@pytest.mark.parametrize("base", [None, "no/such-model", "."])
def test_an_adapter_on_something_unknown_is_not_known(tmp_path, database, base, monkeypatch):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    monkeypatch.chdir(tmp_path)
    assert source_digest(str(tmp_path), {}, database) is None


COMMITS = ["a" * 40, "b" * 40]


@pytest.fixture
def hub(folder, tmp_path):
    """A cache of the Hub with a model of two commits, and a function that says which is main."""
    cache = tmp_path / "hub"
    repository = cache / "models--some--model"
    for commit in COMMITS:
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").symlink_to(folder / "config.json")
    (repository / "refs").mkdir()

    def set_main(commit):
        (repository / "refs" / "main").write_text(commit)

    return {"cache_dir": str(cache)}, set_main


def test_a_model_of_the_hub_is_pinned_by_its_commit(hub, database):
    options, set_main = hub
    digests = []
    for commit in (*COMMITS, COMMITS[0]):
        set_main(commit)
        digests.append(source_digest("some/model", options, database))
    assert None not in digests
    assert digests[0] == digests[2] != digests[1]
    options = options | {"revision": COMMITS[1]}
    pinned = source_digest("some/model", options, database)
    set_main(COMMITS[1])
    assert source_digest("some/model", options, database) == pinned


def test_code_from_another_place_is_not_known(folder, database):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "some/other--modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    assert source_digest(str(folder), {}, database) is None


def test_an_adapter_of_the_hub_is_not_known(hub, folder, tmp_path, database):
    """Its commit says nothing of the model under it."""
    options, set_main = hub
    set_main(COMMITS[0])
    assert source_digest("some/model", options, database) is not None
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / COMMITS[0]
    (snapshot / "adapter_config.json").write_text("{}")
    assert source_digest("some/model", options, database) is None


def test_a_model_that_cannot_be_found_is_not_known(database):
    assert source_digest("no/such-model", {}, database) is None
