"""No argument is ignored in silence."""

import pytest

from tests.models import tiny_rows
from tests.runs import trainer


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("option", "value"), [("dispatch_batches", True), ("use_seedable_sampler", False)]
)
def test_loading_that_cannot_be_is_refused(tmp_path, option, value, streamed):
    rows = tiny_rows(4)
    rows = rows.to_iterable_dataset() if streamed else rows
    with pytest.raises(ValueError, match=f"{option}={value} is not supported: .*leave it out"):
        trainer(tmp_path, rows, accelerator_config={option: value})


def test_rows_are_not_repeated_to_even_batches_up(tmp_path):
    made = trainer(tmp_path, tiny_rows(4), accelerator_config={"even_batches": True})
    assert made.args.accelerator_config.even_batches is False
