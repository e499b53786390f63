"""These are scripts: tests/parity/test_trl_scripts.py runs them, pytest does not read them."""

collect_ignore_glob = ["*.py"]
