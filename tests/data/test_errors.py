import pickle

from prefopt.data import DataError


def test_it_survives_the_way_out_of_a_worker_process():
    error = DataError("is null", row=4, column="chosen").within("eval")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "eval data, row 4, column 'chosen': is null"
    assert (copy.row, copy.column, copy.dataset) == (4, "chosen", "eval")


def test_the_dataset_named_first_is_kept():
    assert DataError("is null", dataset="train").within("eval").dataset == "train"


def test_what_a_worker_of_a_data_loader_says_comes_without_its_traceback():
    said = str(DataError("is null", 4, "chosen", "train"))
    text = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
    text += f"last):\n  File ...\nprefopt.data.errors.DataError: {said}\n"
    assert str(DataError(text)) == said


def test_what_is_quoted_at_length_is_left_out_in_the_middle():
    said = str(DataError(f"is {'x' * 9999}; it needs text", 4, "chosen"))
    assert said.startswith("row 4, column 'chosen': is xxx")
    assert said.endswith("xxx; it needs text")
    assert len(said) < 500
