import pytest
import torch

from tests.indices import make_index


def test_the_index_of_rows_of_one_kind_is_its_own():
    paired = make_index(chosen=[0], rejected=[1])
    index = make_index(chosen=[0, 2], rejected=[1, 3], by_kind={"paired": paired})
    assert index.of_rows(None) is index
    assert index.of_rows("paired") is paired
    with pytest.raises(KeyError):
        index.of_rows("ranked")


def test_each_kind_of_loss_has_weights_of_its_own():
    kinds = ("paired", "unpaired", "preferred", "ranked")
    weights = {
        f"{kind if kind != 'paired' else 'pair'}_weights": [float(i)]
        for i, kind in enumerate(kinds)
    }
    index = make_index(**weights)
    assert [index.weights_of(kind).item() for kind in kinds] == [0.0, 1.0, 2.0, 3.0]
    assert make_index().weights_of("paired") is None


def test_it_moves_with_the_index_of_each_kind():
    index = make_index(margins=[0.5], by_kind={"paired": make_index(chosen=[0])}).to("meta")
    assert index.margins.device == index.by_kind["paired"].chosen.device == torch.device("meta")
