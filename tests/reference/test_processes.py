"""The processes that share work."""

import pytest

from prefopt.reference.processes import Processes


def test_one_process_has_what_it_gives() -> None:
    assert Processes().all("value") == ["value"]


def test_several_processes_have_what_each_gives_in_the_order_of_ranks() -> None:
    processes = Processes(rank=1, count=2, gather=lambda value: ("of rank 0", value))

    assert processes.all("of rank 1") == ["of rank 0", "of rank 1"]


def test_only_the_first_is_the_main_one() -> None:
    assert Processes().is_main
    assert not Processes(1, 2, lambda value: [value, value]).is_main


def test_several_processes_without_a_way_to_gather_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 processes need a way to gather"):
        Processes(0, 2)


def test_waiting_is_meeting_where_there_is_a_way() -> None:
    met: list[int] = []
    Processes().wait()
    Processes(0, 2, lambda value: [value, value], meet=lambda: met.append(1)).wait()
    assert met == [1]
