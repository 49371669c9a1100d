import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.checks import ConfigError, DataError
from fewstep.diffusion.condition import Classes, Condition, Entry, Stored, null_of, require_entries
from fewstep.rng import generator


def rows(n=6):
    rng = generator(0)
    return Condition(
        {
            "label": torch.arange(n),
            "context": torch.randn(n, 3, 2, generator=rng),
            "mask": torch.randn(n, 1, 4, 4, generator=rng),
        }
    )


def test_rows_are_taken_from_every_tensor():
    condition = rows()
    mask = torch.tensor([True, False, False, True, False, False])
    for chosen in (slice(1, 3), torch.tensor([4, 0]), [4, 0, 4], mask, range(2)):
        part = condition[chosen]
        for name, value in condition.values.items():
            index = torch.tensor(list(chosen)) if isinstance(chosen, list | range) else chosen
            assert torch.equal(part.values[name], value[index])
    assert len(condition) == 6 and len(condition[:0]) == 0


def test_joined_parts_are_the_whole():
    condition = rows()
    assert Condition.cat([condition[:2], condition[2:2], condition[2:]]) == condition


def test_equality_and_hash_are_of_the_content():
    condition, same = rows(), rows()
    assert condition == same and hash(condition) == hash(same) and condition.sha256 == same.sha256
    assert condition != condition[:5] and condition != {"label": 1}
    other_names = Condition({name: value for name, value in condition.values.items() if name != "mask"})
    changed = Condition({**condition.values, "mask": condition.values["mask"] + 1})
    shorter = condition.to(dtype=torch.float16)
    for other in (other_names, changed, shorter, condition[[1, 0, 2, 3, 4, 5]]):
        assert other != condition and other.sha256 != condition.sha256


def test_hash_does_not_depend_on_order_of_names_or_on_layout():
    condition = rows(3)
    turned = Condition(dict(reversed(condition.values.items())))
    scattered = condition.values["mask"].transpose(0, 3).contiguous().transpose(0, 3)
    assert not scattered.is_contiguous()
    assert turned.sha256 == Condition({**condition.values, "mask": scattered}).sha256 == condition.sha256


def test_names_dtype_and_shape_are_in_the_hash():
    zeros = torch.zeros(4, 2)
    hashes = {
        Condition(values).sha256
        for values in (
            {"a": zeros}, {"b": zeros}, {"a": zeros.reshape(4, 1, 2)}, {"a": zeros.int()}, {"a": zeros[:2]},
            {"a": torch.zeros(4, 2, dtype=torch.bool)}, {"a": zeros.bfloat16()},
        )
    }  # fmt: skip
    assert len(hashes) == 7


def test_casting_leaves_whole_numbers():
    condition = rows()
    assert condition.to("cpu") is condition is condition.to("cpu", torch.float32)
    short = condition.to(dtype=torch.bfloat16)
    assert [value.dtype for value in short.values.values()] == [torch.int64, torch.bfloat16, torch.bfloat16]


def test_where_takes_the_rows_of_the_other():
    condition = rows()
    null = Stored(None, Condition({"label": torch.tensor([9]), "context": torch.zeros(1, 1, 2),
                                   "mask": torch.zeros(1, 1, 1, 1)}), Stored(condition).entries)  # fmt: skip
    mask = torch.tensor([True, False, False, True, False, False])
    mixed = condition.where(mask, null_of(null, 1))
    assert mixed.values["label"].tolist() == [9, 1, 2, 9, 4, 5]
    assert not mixed[mask].values["context"].any() and mixed[~mask] == condition[~mask]


@pytest.mark.parametrize("values", [{}, {"a": torch.tensor(1)}, {"a": torch.zeros(2), "b": torch.zeros(3)}])
def test_tensors_of_unlike_lengths_are_refused(values):
    with pytest.raises(DataError, match="tensors of one length"):
        Condition(values)


def test_parts_that_differ_are_refused():
    with pytest.raises(DataError, match="names context, label, mask; got label"):
        Condition.cat([rows(), Classes(3).of([0])])
    with pytest.raises(DataError, match=r"context is \(1, 3, 2\) and \(1, 4, 2\)"):
        Condition.cat([Condition({"context": torch.zeros(1, t, 2)}) for t in (3, 4)])
    with pytest.raises(DataError, match="must be a condition to join"):
        Condition.cat([])


# Classes


@given(st.lists(st.integers(0, 1 << 62), min_size=1), st.integers(1, 1000))
def test_label_is_the_seed_modulo_the_number_of_classes(seeds, n):
    """As it was written in four places: torch.tensor([s % n for s in seeds])."""
    found = Classes(n).of(seeds).values["label"]
    assert torch.equal(found, torch.tensor([s % n for s in seeds]))
    assert torch.equal(found, torch.tensor(seeds) % n)


def test_label_of_no_class_is_their_number():
    classes = Classes(4)
    assert torch.equal(classes.null(classes.of([5, 6])).values["label"], torch.tensor([4, 4]))
    assert null_of(classes, 3).values["label"].tolist() == [4, 4, 4]
    assert classes == Classes(4) != Classes(5) and hash(classes) == hash(Classes(4))


def test_classes_are_not_counted_as_rows():
    assert Classes(10).identity is None


def test_no_classes_are_no_conditions():
    with pytest.raises(ConfigError, match="a class or more; got 0"):
        Classes(0)


# Stored rows


def test_row_is_the_seed_modulo_the_number_of_rows():
    stored = Stored(rows())
    assert stored.of([0, 7, 6_000_000_005]) == rows()[[0, 1, 5]]
    assert stored.identity == {"sha256": rows().sha256, "rows": 6}
    assert stored == Stored(rows()) and hash(stored) == hash(Stored(rows()))


def test_null_row_has_the_shape_of_what_it_stands_for():
    null = Condition(
        {"label": torch.tensor([9]), "context": torch.zeros(1, 1, 2), "mask": torch.zeros(1, 1, 1, 1)}
    )
    stored = Stored(rows(), null)
    found = stored.null(rows()[:2].to(dtype=torch.float64))
    assert {name: value.shape for name, value in found.values.items()} == {
        name: value.shape for name, value in rows()[:2].values.items()
    }
    assert found.values["context"].dtype == torch.float64 and found.values["label"].tolist() == [9, 9]
    assert Stored(rows()).null(rows()) is None


def test_rows_are_bound_later():
    open_ended = Stored(None, None, {"context": Entry((None, 2)), "label": Entry((), torch.int64)})
    assert open_ended.identity is None
    with pytest.raises(ConfigError, match=r"needs stored conditions, context floating point \(B, any, 2\)"):
        open_ended.of([0])
    fitting = Condition({"context": torch.zeros(2, 7, 2), "label": torch.tensor([0, 1])})
    assert open_ended.bind(fitting).of([3]) == fitting[[1]]
    for name, value in (
        ("context", torch.zeros(2, 7, 3)),
        ("label", torch.zeros(2)),
        ("label", torch.zeros(2, 1).long()),
    ):
        with pytest.raises(DataError, match=f"The condition {name} must be"):
            open_ended.bind(Condition({**fitting.values, name: value}))
    with pytest.raises(DataError, match="a row or more; got none"):
        open_ended.bind(fitting[:0])
    with pytest.raises(ConfigError, match="got neither"):
        Stored()


def test_any_floating_point_tensor_is_taken():
    entries = {"context": Entry((None, 2))}
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        require_entries(Condition({"context": torch.zeros(1, 2, 2, dtype=dtype)}), entries)
    with pytest.raises(DataError, match=r"floating point \(B, any, 2\).* got int32 \(1, 2, 2\)"):
        require_entries(Condition({"context": torch.zeros(1, 2, 2, dtype=torch.int32)}), entries)


def test_null_row_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="must have the names"):
        Stored(rows(), Classes(2).of([0]))
    with pytest.raises(DataError, match="must be one row; got 6"):
        Stored(rows(), rows())
