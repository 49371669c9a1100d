"""What images are conditioned on, as values: class labels, context tokens, masks and maps alike."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.checks import ConfigError, DataError

LABEL, CONTEXT = "label", "context"
"""Names with a meaning of their own: the class, int64 (B,), and tokens for cross-attention, (B, T, D)."""


@dataclass(frozen=True, eq=False)
class Condition:
    """What each of some images is conditioned on: tensors by name, whose first axis is the image.

    Equal where names, shapes, dtypes and bytes are. The tensors must not be changed in place.

    Attributes: values: name -> (B, ...), at least one, all of one length.
    Raises: DataError: no name, or tensors of unlike lengths.
    """

    values: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        lengths = {name: len(value) if value.ndim else None for name, value in self.values.items()}
        if not lengths or None in lengths.values() or len(set(lengths.values())) > 1:
            raise DataError(
                "A condition must have tensors of one length, the number of images, under one name or more; "
                f"got the lengths {lengths}."
            )
        object.__setattr__(self, "values", dict(self.values))

    def __len__(self) -> int:
        """Number of images."""
        return len(next(iter(self.values.values())))

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> "Condition":
        """Those of some images: a slice, int64 (N,), bool (B,), or a sequence of row numbers."""
        chosen = rows if isinstance(rows, slice | Tensor) else torch.as_tensor(list(rows), dtype=torch.int64)
        return Condition({name: value[_beside(chosen, value)] for name, value in self.values.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Condition):
            return NotImplemented
        if self.values.keys() != other.values.keys():
            return False
        pairs = ((value, other.values[name]) for name, value in self.values.items())
        return all(a.dtype == b.dtype and torch.equal(a, b.to(a.device)) for a, b in pairs)

    def __hash__(self) -> int:
        return hash(self.sha256)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Condition":
        """On a device, and with floating-point tensors in a dtype; itself where nothing changes."""
        moved = {
            name: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
            for name, value in self.values.items()
        }
        same = all(moved[name] is value for name, value in self.values.items())
        return self if same else Condition(moved)

    def where(self, mask: Tensor, other: "Condition") -> "Condition":
        """`other`, as many rows or shapes that broadcast to these, where the mask, bool (B,), is true.
        Raises: DataError: the names differ.
        """
        require_names(other, self.values)
        return Condition(
            {
                name: torch.where(
                    mask.to(value.device).reshape(-1, *[1] * (value.ndim - 1)),
                    other.values[name].to(value),
                    value,
                )
                for name, value in self.values.items()
            }
        )

    @cached_property
    def sha256(self) -> str:
        """Hash of names, dtypes, shapes and bytes, in the order of the names; the same on every device."""
        digest = hashlib.sha256()
        for name, value in sorted(self.values.items()):
            digest.update(f"{name} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}\n".encode())
            for part in torch.split(value.detach(), 1024):  # it may be a memory map
                digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """The images of all parts, in order.
        Raises: DataError: there is no part, or two of them differ in their names or shapes.
        """
        if not parts:
            raise DataError("There must be a condition to join; got none.")
        for part in parts[1:]:
            require_names(part, parts[0].values)
            for name, value in part.values.items():
                if value.shape[1:] != parts[0].values[name].shape[1:]:
                    raise DataError(
                        f"Conditions to be joined must agree in all but their lengths; {name} is "
                        f"{tuple(parts[0].values[name].shape)} and {tuple(value.shape)}."
                    )
        return Condition({name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values})


def _beside(rows: slice | Tensor, value: Tensor) -> slice | Tensor:
    return rows if isinstance(rows, slice) else rows.to(value.device)


def require_names(condition: Condition, names: Mapping[str, Any]) -> None:
    """Raise DataError where a condition's names are not these."""
    if condition.values.keys() != names.keys():
        raise DataError(
            f"A condition must have the names {', '.join(sorted(names))}; "
            f"got {', '.join(sorted(condition.values))}."
        )


@dataclass(frozen=True)
class Entry:
    """What a condition must hold under one name.

    Attributes: shape: of one image's tensor, None for an axis of any length; () for one number. dtype: int64 for
        labels; a floating-point dtype stands for all of them, since tensors are cast to the network's.
    """

    shape: tuple[int | None, ...] = ()
    dtype: torch.dtype = torch.float32

    def holds(self, value: Tensor) -> bool:
        """Whether a tensor (B, *shape) is of this form."""
        of_kind = value.is_floating_point() if self.dtype.is_floating_point else value.dtype == self.dtype
        sizes = value.shape[1:]
        return (
            of_kind
            and len(sizes) == len(self.shape)
            and all(wanted in (None, size) for wanted, size in zip(self.shape, sizes, strict=True))
        )

    def __str__(self) -> str:
        kind = "floating point" if self.dtype.is_floating_point else str(self.dtype).removeprefix("torch.")
        sizes = ("any" if size is None else str(size) for size in self.shape)
        return f"{kind} ({', '.join(('B', *sizes))})"


def require_entries(condition: Condition, entries: Mapping[str, Entry]) -> None:
    """Raise DataError where a condition lacks what a model takes, or has something else."""
    require_names(condition, entries)
    for name, value in condition.values.items():
        if not entries[name].holds(value):
            raise DataError(
                f"The condition {name} must be {entries[name]}, as the model takes it; "
                f"got {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}."
            )


class Conditions(Protocol):
    """Where the conditions of a model's images come from."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What the model takes, by name."""
        ...

    @property
    def identity(self) -> dict[str, Any] | None:
        """`sha256` and number of `rows`, as certificates and plans name what was conditioned on.

        None where nothing is counted: the model itself says what there is, and all images share it, as with classes.
        """
        ...

    def of(self, seeds: Sequence[int]) -> Condition:
        """The condition of each image, by its seed."""
        ...

    def null(self, like: Condition) -> Condition | None:
        """The condition that says nothing, for as many images, for guidance; None where the model has none.

        Pipelines that guide by themselves have none either.
        """
        ...

    def without_null(self) -> "Conditions":
        """The same without a null condition, for a network that was not trained with it."""
        ...


@dataclass(frozen=True)
class Classes:
    """Class labels: that of an image is its seed modulo their number.

    Attributes: n: how many; n itself is the label of no class. has_null: whether the model knows that label.
    """

    n: int
    has_null: bool = True

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(
                f"There must be a class or more; got {self.n}; a model without classes has no conditions."
            )

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The label, int64 (B,)."""
        return {LABEL: Entry((), torch.int64)}

    @property
    def identity(self) -> None:
        """Nothing: a search must see every class, and so must a report."""
        return None

    def of(self, seeds: Sequence[int]) -> Condition:
        """The label of each seed, {"label": (len(seeds),)}."""
        return Condition({LABEL: torch.tensor([seed % self.n for seed in seeds], dtype=torch.int64)})

    def null(self, like: Condition) -> Condition | None:
        """No class, for as many images; None for a model that does not know it."""
        return Condition({LABEL: torch.full_like(like.values[LABEL], self.n)}) if self.has_null else None

    def without_null(self) -> "Classes":
        """Without the label of no class."""
        return replace(self, has_null=False)


@dataclass(frozen=True)
class Stored:
    """Rows of stored tensors: an image has the row of its seed modulo their number.

    Attributes:
        rows: the tensors; None for a model to which none have been bound.
        null_row: the null condition, one row whose other axes are 1 or those of the rows; None where there is none.
        entries: what the model takes; that of the rows where it is not given.

    Raises:
        ConfigError: neither rows nor entries. DataError: no rows, rows that the entries do not describe, or a null
            row that does not fit.
    """

    rows: Condition | None = None
    null_row: Condition | None = None
    entries: Mapping[str, Entry] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        entries = self.entries
        if not entries:
            if self.rows is None:
                raise ConfigError(
                    "Stored conditions need rows, or entries that say what rows will hold; got neither."
                )
            values = self.rows.values.items()
            entries = {name: Entry(tuple(value.shape[1:]), value.dtype) for name, value in values}
            object.__setattr__(self, "entries", entries)
        if self.rows is not None:
            if len(self.rows) == 0:
                raise DataError("Stored conditions must have a row or more; got none.")
            require_entries(self.rows, entries)
        if self.null_row is not None:
            require_names(self.null_row, entries)
            if len(self.null_row) != 1:
                raise DataError(f"The null condition must be one row; got {len(self.null_row)}.")

    def bind(self, rows: Condition) -> "Stored":
        """The same with these rows.
        Raises: DataError: there is none, or the model takes others.
        """
        return replace(self, rows=rows)

    @property
    def identity(self) -> dict[str, Any] | None:
        """Hash and number of the rows."""
        return None if self.rows is None else {"sha256": self.rows.sha256, "rows": len(self.rows)}

    def of(self, seeds: Sequence[int]) -> Condition:
        """The row of each seed, on the CPU or where the rows are.
        Raises: ConfigError: no rows are bound.
        """
        if self.rows is None:
            raise ConfigError(
                f"The model needs stored conditions, {said(self.entries)}, but there are none; name their folder with "
                "--conditions, or bind rows to model.conditions."
            )
        return self.rows[[seed % len(self.rows) for seed in seeds]]

    def without_null(self) -> "Stored":
        """Without the null row."""
        return replace(self, null_row=None)

    def null(self, like: Condition) -> Condition | None:
        """The null row for as many images, in the shapes of `like`."""
        if self.null_row is None:
            return None
        values = self.null_row.values
        return Condition(
            {name: values[name].to(value).expand_as(value) for name, value in like.values.items()}
        )


def said(entries: Mapping[str, Entry]) -> str:
    """What a model takes, for messages."""
    return " and ".join(f"{name} {entry}" for name, entry in entries.items())


def null_of(conditions: Conditions, n: int) -> Condition | None:
    """The null condition of n images where there is no other condition that it must be like."""
    shapes = {
        name: ((n, *(size or 1 for size in entry.shape)), entry.dtype)
        for name, entry in conditions.entries.items()
    }
    return conditions.null(
        Condition({name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()})
    )
