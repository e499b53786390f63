"""What of a launch scoring depends on."""

import torch
from accelerate import Accelerator

from prefopt.training.launch import Launch


def test_a_launch_in_one_process_needs_nobody():
    launch = Launch.of(Accelerator(cpu=True))
    assert (launch.processes.count, launch.processes.is_main, launch.is_sharded) == (1, True, False)
    assert launch.autocast_name == "none"
    assert launch.processes.sum(torch.ones(2)).tolist() == [1, 1]
    assert launch.processes.all("x") == ["x"]
