"""Where the tests look for the shared data."""

import pytest

from tests.conftest import find_shared


def test_missing_shared_data_is_none_unless_it_is_required(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFOPT_SHARED", str(tmp_path / "nowhere"))
    monkeypatch.delenv("PREFOPT_REQUIRE_SHARED", raising=False)
    assert find_shared() is None
    monkeypatch.setenv("PREFOPT_REQUIRE_SHARED", "1")
    with pytest.raises(RuntimeError, match=r"no shared data in .*nowhere"):
        find_shared()


def test_the_shared_data_is_found_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFOPT_SHARED", str(tmp_path))
    assert find_shared() == tmp_path
