from prefopt.training.model_card import model_card, write_model_card
from tests.models import tiny_model, tiny_rows
from tests.runs import trainer


def test_a_card_says_with_what_the_model_was_trained(tmp_path):
    run = trainer(
        tmp_path / "aligned",
        tiny_rows(6),
        eval_dataset=tiny_rows(4),
        loss_type="dpo + 0.2*sft",
        beta=0.3,
        max_steps=1,
    )
    run.train()
    run.evaluate()
    card = model_card(run)
    assert card.startswith("---\nlibrary_name: transformers\n")
    for said in (
        "# aligned",
        "`dpo + 0.2*sft`",
        "beta=0.3",
        "arXiv:2305.18290",
        "steps: 1",
        "layout: shared_prefix",
        "| eval_rewards/accuracies |",
    ):
        assert said in card
    write_model_card(tmp_path, run)
    assert (tmp_path / "README.md").read_text() == card


def test_the_base_model_is_named_if_others_can_load_it(tmp_path):
    for name, named in (("hub/model", True), (str(tmp_path), False)):
        model = tiny_model("llama")
        model.config._name_or_path = name
        card = model_card(trainer(tmp_path, tiny_rows(4), model=model))
        assert (f"base_model: {name}" in card) == named
