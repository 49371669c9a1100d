"""Lists of prompts are read alike from every kind of file, and as conditions they come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.checks import DataError
from fewstep.data.prompts import (
    ENTRIES,
    digest,
    is_prompts,
    prompts_condition,
    prompts_of,
    read_prompts,
    split_column,
)
from fewstep.diffusion.condition import Stored

pd = pytest.importorskip("pandas")

texts = (
    st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20)
    .map(str.strip)
    .filter(bool)
)


@given(st.lists(texts, min_size=1, max_size=6))
def test_prompts_come_back_from_their_condition(prompts):
    condition = prompts_condition(prompts)
    assert prompts_of(condition) == prompts
    stored = Stored(entries=ENTRIES).bind(condition)
    assert prompts_of(stored.of([len(prompts), 0])) == [prompts[0], prompts[0]]


def test_the_same_prompts_from_each_kind_of_file(tmp_path):
    prompts = ["a cat, in “quotes”", "two dogs", "un café"]
    (tmp_path / "p.txt").write_text("\ufeff" + "\n\n".join(prompts) + "\n", encoding="utf-8")
    frame = pd.DataFrame({"n": [1, 2, 3], "caption": prompts})
    frame.to_csv(tmp_path / "p.csv", index=False)
    frame.to_parquet(tmp_path / "p.parquet")
    for name in ("p.txt", "p.csv", "p.csv:caption", "p.parquet", "p.parquet:caption"):
        assert is_prompts(tmp_path / name) and read_prompts(tmp_path / name) == prompts
    assert split_column(tmp_path / "a:b.txt") == (tmp_path / "a:b.txt", None)
    assert not is_prompts(tmp_path) and not is_prompts(tmp_path / "conditions")


def test_prompts_are_cleaned(tmp_path):
    (tmp_path / "p.txt").write_text("  a   red\tcat \ncafe\u0301\n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == ["a red cat", "café"]
    assert digest("A Red Cat") == digest("a red cat") and len(digest("x")) == 16


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("p.txt", b"", "must hold a prompt or more; got none"),
        ("p.txt", b"a cat\nA CAT\n", "must hold each prompt once, but 1 and 2 are both 'A CAT'"),
        ("p.txt", b"\xff\xfe", "must be text in UTF-8"),
        ("p.csv", b"prompt\na\n  \n", "prompt 2 is empty"),
        ("p.csv", b"words\na\n", "must have the column prompt or caption or text; it has words"),
        ("p.parquet", b"PAR1", "must be a Parquet file"),
    ],
)
def test_lists_that_cannot_be(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_prompts(tmp_path / name)


def test_columns_of_numbers(tmp_path):
    pd.DataFrame({"prompt": [1, 2]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(DataError, match="The column prompt of .* must be text"):
        read_prompts(tmp_path / "p.parquet")
