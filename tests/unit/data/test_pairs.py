import numpy as np
import pytest

from fewstep.checks import DataError
from fewstep.data.pairs import load_pairs, pairs_of, save_pairs

TABLE = pairs_of([5, 2, 7, 1, 0], [3, 3, 0, 0, 9], [1, 3, 1, 1, 0.2], [0.5, 0.25, 1, float("nan"), -0.125])


def test_file_holds_the_table(tmp_path):
    save_pairs(tmp_path / "pairs.csv", TABLE)
    for path in (tmp_path / "pairs.csv", tmp_path):
        loaded = load_pairs(path)
        assert loaded.cond_id.tolist() == [1, 7, 2, 5, 0] and loaded.target_id.tolist() == [0, 0, 3, 3, 9]
        assert loaded.weight.tolist() == [1, 1, 3, 1, 0.2]
        assert np.array_equal(loaded.similarity, [float("nan"), 1, 0.25, 0.5, -0.125], equal_nan=True)
        assert loaded.sha256 == TABLE.sha256


def test_conditions_are_drawn_by_weight_from_an_images_own_pairs():
    assert TABLE.targets.tolist() == [0, 3, 9]
    uniform = (np.arange(4000) + 0.5) / 4000
    found = TABLE.drawn(np.ones(4000, np.int64), uniform)
    assert set(found) == {2, 5} and (found == 2).mean() == 0.75
    assert set(TABLE.drawn(np.full(50, 2), np.linspace(0, 1 - 1e-16, 50))) == {0}
    assert set(TABLE.drawn(np.zeros(50, np.int64), np.linspace(0, 1 - 1e-16, 50))) == {1, 7}


def test_users_table_may_leave_out_weights(tmp_path):
    (tmp_path / "mine.csv").write_text("target_id,cond_id\n4,1\n4,2\n")
    table = load_pairs(tmp_path / "mine.csv")
    assert table.weight.tolist() == [1, 1] and np.isnan(table.similarity).all()


@pytest.mark.parametrize(
    "text, words",
    [
        ("a,b\n1,2\n", "must have the columns cond_id, target_id, .*; cond_id is"),
        ("cond_id,target_id\n", "a pair or more; got none"),
        ("cond_id,target_id\n1,x\n", "line 2: cond_id and target_id must be whole numbers"),
        ("cond_id,target_id\n1\n", "line 2: cond_id and target_id must be whole numbers"),
        ("cond_id,target_id\n-1,2\n", "got a negative one"),
        ("cond_id,target_id\n1,2\n1,2\n", "1, 2 stands twice"),
        ("cond_id,target_id,weight\n1,2,-1\n", "finite and above 0"),
    ],
)
def test_bad_tables_are_one_sentence(text, words, tmp_path):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        load_pairs(tmp_path / "pairs.csv")


def test_ids_are_rows():
    TABLE.require_within(8, 10)
    with pytest.raises(DataError, match="cond_id of pairs must be below 7, .*; got 7"):
        TABLE.require_within(7, 10)
    with pytest.raises(DataError, match="target_id of pairs must be below 9, .*; got 9"):
        TABLE.require_within(8, 9)
