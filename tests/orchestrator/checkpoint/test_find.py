"""Which of some evaluations is meant; each expectation follows from the numbers given here."""

import pytest

from model.config import InferenceConfig, ModelConfig, TrainConfig
from orchestrator.checkpoint.find import FinishedEvaluation, Query, select, table_of
from orchestrator.errors import UserError
from orchestrator.tracking.records import inference_params, read_inference, training_params
from orchestrator.tracking.runs import Run


def candidate(suite: str = "paper", seed: int = 0, ap: float | None = 30.0, ap50: float = 50.0, **places: str):
    tags = {f"row.{table}": place for table, place in places.items()} | {"seed": str(seed)}
    metrics = ({} if ap is None else {"val/AP": ap}) | {"val/AP50": ap50}
    run = Run(run_id=str(ap), name="", status="FINISHED", tags=tags | {"kind": "evaluation"}, metrics=metrics)
    return FinishedEvaluation(suite=suite, run=run)


PLAIN = candidate(ap=30.0, ap50=60.0, table1_heads="00 RetinaNet", table6="03 RetinaNet, R50")
BOX = candidate(ap=31.0, ap50=50.0, table1_heads="01 IoU-aware Net")
OURS = candidate(ap=32.0, ap50=50.0, table1_heads="02 RetinaNet-Conf", table2="00 CE")
AGAIN = candidate(ap=32.5, ap50=49.0, seed=1, table1_heads="02 RetinaNet-Conf")
OTHER = candidate(ap=40.0, table2="01 L1")
ALL = [OTHER, AGAIN, OURS, BOX, PLAIN]


def chosen(*candidates: FinishedEvaluation, **query: str) -> FinishedEvaluation:
    return select(candidates or ALL, Query(**query))


def test_best_is_the_highest_of_the_table_in_the_metric_that_counts():
    assert chosen(table="table1_heads") is AGAIN
    assert chosen(table="table1_heads", metric="AP50") is PLAIN
    assert chosen(table="table2") is OTHER
    assert chosen() is OTHER


def test_of_equals_the_first_of_the_table_is_best():
    first, second = candidate(ap=5.0, t="00 a"), candidate(ap=5.0, t="01 b")
    assert chosen(second, first, table="t") is first
    assert chosen(second, first) is first  # MLflow gives the newest first


def test_a_row_is_taken_by_its_label_and_of_its_seeds_the_best():
    assert chosen(table="table1", row="RetinaNet-Conf") is AGAIN
    assert chosen(table="table1", row="RetinaNet-Conf", metric="AP50") is OURS
    assert chosen(row="RetinaNet, R50") is PLAIN
    assert PLAIN.label("table6") == "RetinaNet, R50"


def test_the_beginning_of_a_tables_name_is_enough_where_no_other_begins_so():
    assert chosen(table="table1") is AGAIN
    with pytest.raises(UserError, match="--table table may be any of table1_heads, table2, table6"):
        chosen(table="table")


def test_what_is_unknown_is_named_with_what_may_be_meant():
    with pytest.raises(UserError, match=r"--table tabel2: .* did you mean table2\?"):
        chosen(table="tabel2")
    with pytest.raises(UserError, match=r"'RetinaNet-Cnf' is no finished row of table table1_heads; did you mean Re"):
        chosen(table="table1", row="RetinaNet-Cnf")
    with pytest.raises(UserError, match="--metric APl: none of these rows has it"):
        chosen(metric="APl")
    assert chosen(candidate(ap=None, t="00 a"), BOX, metric="AP") is BOX
    with pytest.raises(UserError, match=r"--metric LaECE: .* of this one less is better; expected one of: AP, AP50,"):
        chosen(metric="LaECE")


def test_a_table_of_several_suites_asks_which():
    twin = candidate("miniature", ap=90.0, table1_heads="00 RetinaNet")
    with pytest.raises(
        UserError, match="table table1_heads stands in the suites miniature, paper; say which with --su"
    ):
        chosen(twin, *ALL, table="table1")
    assert chosen(twin, *ALL, table="table2") is OTHER


def test_a_label_of_several_tables_with_different_results_is_refused_with_their_numbers():
    here = candidate(ap=32.0, table1="02 ours", table5="00 alpha 0.4")
    there = candidate(ap=35.0, table3="00 ours")
    with pytest.raises(
        UserError,
        match=r"'ours' is another result in each of the tables table1 \(AP 32\.0\); table3 \(AP 35\.0\); say which: "
        "--table table1, or 'table1:ours'",
    ):
        chosen(there, here, row="ours")
    assert chosen(there, here, row="table1:ours") is here
    assert chosen(there, here, row="ours", table="table3") is there
    twice = candidate(ap=31.0, table1="02 ours", table2="00 ours")
    seed = candidate(ap=33.0, seed=1, table1="02 ours", table2="00 ours")
    assert chosen(twice, seed, row="ours") is seed  # one result in two tables is one checkpoint


def test_a_label_of_several_suites_asks_which():
    twin = candidate("miniature", ap=90.0, t="00 RetinaNet")
    with pytest.raises(UserError, match="row 'RetinaNet' stands in the suites miniature, paper; say which with --su"):
        chosen(twin, PLAIN, row="RetinaNet")
    with pytest.raises(UserError, match="'RetinaNte' is no finished row of suite miniature, paper; did you mean Ret"):
        chosen(twin, PLAIN, row="RetinaNte")


def test_a_label_with_a_colon_is_taken_as_it_stands():
    odd = candidate(ap=1.0, table1_heads="04 loss: focal")
    assert chosen(odd, *ALL, row="loss: focal") is odd
    assert chosen(odd, *ALL, row="table1:loss: focal") is odd
    with pytest.raises(UserError, match="--table loss: no finished row stands in such a table"):
        chosen(*ALL, row="loss: focal")


def test_the_table_in_which_a_row_was_found_is_the_one_named_or_the_first_with_the_label():
    both = candidate(t1="00 a", t2="00 b", t20="00 c")
    assert table_of(both, Query(row="b")) == "t2"
    assert table_of(both, Query(row="t20:c")) == "t20"
    assert table_of(both, Query(table="t2")) == "t2"
    assert table_of(both, Query()) == "t1"


@pytest.mark.parametrize(
    "inference",
    [
        InferenceConfig(),
        InferenceConfig(confidence_exponent=0.0, nms_iou=0.6, max_detections=7),
        InferenceConfig(fusion="product", top_k_of="pairs", min_confidence=0.5),
        InferenceConfig(fuse_small_levels=False, confidence_exponent=0.9),
    ],
)
def test_inference_settings_read_back_from_the_params_of_an_evaluation(inference: InferenceConfig):
    of_training = training_params(TrainConfig(model=ModelConfig(confidence=None), seed=3))
    assert read_inference(of_training | inference_params(inference)) == inference
