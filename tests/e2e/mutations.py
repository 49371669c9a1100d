"""Damage that files come with: what hands, editors, other programs, disks and networks do to them."""

import copy
import io
import json
import zipfile

import numpy as np
from hypothesis import strategies as st

_DEEP = "[" * 3000
VALUES = (
    None, True, False, 0, -1, 1, 3, 1.5, -0.0, 1e300, 2**31, 2**63, 2**64, 10**400, "", "x", "a/b", "0-3", "\ud800",
    "\x00", "x" * 5000, [], {}, [[]], [1], [None], ["x"], {"x": 1}, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
shares = st.floats(0, 1, exclude_max=True)
changes = st.lists(
    st.tuples(
        shares,
        st.sampled_from(
            ("delete", "rename", "put", "put", "put", "wrap", "unwrap", "repeat", "swap", "text")
        ),
        shares,
    ),
    min_size=1,
    max_size=2,
)
damages = st.tuples(
    st.sampled_from(("cut", "flip", "bom", "utf-16", "latin-1", "empty", "twice", "deep", "null", "nul")),
    shares,
)


def _places(value, place=()):
    """The path of everything within a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*place, key)
        yield from _places(item, (*place, key))


def changed(document, changes):
    """A copy of a JSON document with fields removed, renamed, replaced, nested or repeated."""
    document = copy.deepcopy(document)
    for where, how, what in changes:
        places = list(_places(document))
        if not places:
            return copy.deepcopy(VALUES[int(what * len(VALUES))])
        # places near the top are few: half of the changes are made there
        top = [place for place in places if len(place) <= 2]
        places = top if int(where * 1e6) % 2 else places
        *above, key = places[int(where * len(places))]
        owner = document
        for step in above:
            owner = owner[step]
        _change(owner, key, how, what)
    return document


def _change(owner, key, how, what):
    match how:
        case "delete":
            del owner[key]
        case "rename" if isinstance(owner, dict):
            owner[f"{key}x"] = owner.pop(key)
        case "wrap":
            owner[key] = [owner[key]] if what < 0.5 else {"x": owner[key]}
        case "unwrap" if isinstance(owner[key], (dict, list)) and owner[key]:
            owner[key] = next(iter(owner[key].values() if isinstance(owner[key], dict) else owner[key]))
        case "repeat" if isinstance(owner, list):
            owner.insert(key, copy.deepcopy(owner[key]))
        case "swap":
            keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
            other = keys[int(what * len(keys))]
            owner[key], owner[other] = owner[other], owner[key]
        case "text":
            owner[key] = str(owner[key])
        case _:
            owner[key] = copy.deepcopy(VALUES[int(what * len(VALUES))])


def damaged(data, how, where):
    """Bytes with one thing wrong."""
    at = int(where * len(data))
    match how:
        case "cut":
            return data[:at]
        case "flip":
            return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]
        case "bom":
            return b"\xef\xbb\xbf" + data
        case "utf-16":
            return data.decode("latin-1").encode("utf-16")
        case "latin-1":
            return data[:at] + b"\xe9" + data[at:]
        case "empty":
            return b""
        case "twice":
            return data * 2
        case "deep":
            return _DEEP.encode()
        case "null":
            return b"null"
        case _:
            return data[:at] + b"\x00" * 16 + data[at:]


def arrays_of(data):
    """The arrays of an .npz by name."""
    with np.load(io.BytesIO(data)) as arrays:
        return {name: arrays[name] for name in arrays.files}


def npz(arrays):
    """Bytes of an .npz of arrays; bytes become a member that is no array."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if not isinstance(array, bytes)})
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, content in arrays.items():
            if isinstance(content, bytes):
                archive.writestr(name, content)
    return buffer.getvalue()


array_changes = st.lists(
    st.tuples(
        shares,
        st.sampled_from(
            ("delete", "rename", "bytes", "object", "text", "int8", "float16", "complex", "bool", "big", "scalar",
             "flat", "axis", "empty", "short", "nan", "inf", "huge", "negative", "transpose")
        ),
    ),
    min_size=1,
    max_size=2,
)  # fmt: skip


def with_arrays_changed(arrays, changes):
    """Arrays of another kind, shape or content; meta, a text, is changed as JSON elsewhere."""
    arrays = dict(arrays)
    for where, how in changes:
        names = sorted(arrays)
        if not names:
            break
        name = names[int(where * len(names))]
        array = arrays.pop(name)
        if isinstance(array, bytes) or how == "delete":
            continue
        arrays[f"{name}x" if how == "rename" else name] = _changed_array(array, how)
    return arrays


def _changed_array(array, how):
    is_number = array.dtype.kind in "iuf"
    match how:
        case "bytes":
            return b"no array"
        case "object":
            return np.array([None])
        case "text":
            return np.array(["x"] * 3)
        case "int8" | "float16" | "complex" | "bool" if is_number:
            with np.errstate(all="ignore"):
                return array.astype({"complex": complex}.get(how, how))
        case "big" if is_number:
            return array.astype(array.dtype.newbyteorder(">"))
        case "scalar":
            return array.reshape(-1)[0] if array.size else np.array(0)
        case "flat":
            return array.reshape(-1)
        case "axis":
            return array[None]
        case "empty":
            return array[:0] if array.ndim else np.zeros(0)
        case "short":
            return array[:-1] if array.ndim else array
        case "nan" | "inf" if array.dtype.kind == "f":
            return np.full_like(array, float(how))
        case "huge" if array.dtype.kind == "f":
            return array * np.finfo(array.dtype).max ** 0.75
        case "negative" if array.dtype.kind == "f":
            return -array
        case "transpose":
            return array.T
    return array


def json_text(document):
    """As written by programs that know of NaN."""
    return json.dumps(document).encode()
