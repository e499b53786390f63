"""Fixtures every test may use: where the shared data lies, and a machine set to be repeatable."""

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

# While everything is imported little becomes free, and looking for it takes a quarter of the time:
# until `pytest_collection` ends.
gc.disable()

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # it warns when CPO and ORPO are imported

# A shell that starts tests in the background may have them ignore what some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The user's own store of reference log-probs is never touched, by fixtures of modules neither.
_CACHE = tempfile.TemporaryDirectory(prefix="prefopt-tests-")
os.environ["PREFOPT_CACHE"] = _CACHE.name
_NUMBERS = count()

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Take what the tests import out of garbage collection, each of which would walk through it.

    accelerate asks for one whenever training starts: with a million objects that took as long as
    the training.
    """
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def find_shared() -> Path | None:
    """Return the folder of shared data, or None where this machine has none.

    Raises:
        RuntimeError: If there is none and ``PREFOPT_REQUIRE_SHARED`` is 1, as in CI.
    """
    folder = Path(os.environ.get("PREFOPT_SHARED", ROOT.parent / "shared"))
    if folder.is_dir():
        return folder
    if os.environ.get("PREFOPT_REQUIRE_SHARED") == "1":
        raise RuntimeError(f"PREFOPT_REQUIRE_SHARED=1, but there is no shared data in {folder}")
    return None


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the real data and golden values; the test skips where it is missing."""
    folder = find_shared()
    if folder is None:
        pytest.skip("needs the shared data: set PREFOPT_SHARED to its folder")
    return folder


@pytest.fixture(autouse=True)
def _own_reference_cache(monkeypatch) -> None:
    """Each test starts without a store of reference log-probs."""
    # Not a folder of pytest's: to number the next it lists those of all tests before.
    monkeypatch.setenv("PREFOPT_CACHE", f"{_CACHE.name}/{next(_NUMBERS)}")


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test register losses that are gone after it."""
    from prefopt.losses import registry

    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))
    monkeypatch.setattr(registry, "_NAMES", dict(registry._NAMES))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of completions that references scored to fill stores, batch by batch."""
    from prefopt.reference import fill

    counts = []
    original = fill.score_completions

    def counting(examples: Any, *options: Any) -> Any:
        counts.append(sum(len(example.completion_ids) for example in examples))
        return original(examples, *options)

    monkeypatch.setattr(fill, "score_completions", counting)
    return counts


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in for the Hub, which uploads of this process go to."""
    from huggingface_hub import constants
    from transformers.utils import hub as of_transformers

    from tests.hub import stand_in

    with stand_in() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(of_transformers, "_hf_api", None)
        yield served
