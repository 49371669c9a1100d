"""Files of arrays, damaged or of another kind: a set of the right images, or one sentence."""

import io
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewstep.checks import UserError
from fewstep.pipeline.images import ImageSet, open_images
from fewstep.pipeline.samples import FACTS, Samples, write_samples

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 3), dtype=np.uint8)
within_seconds = settings(
    derandomize=True, deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow]
)


def saved(kind):
    buffer = io.BytesIO()
    match kind:
        case "npy":
            np.save(buffer, PIXELS)
        case "npz":
            np.savez(buffer, PIXELS)
        case "compressed":
            np.savez_compressed(buffer, PIXELS, np.arange(4))
        case "samples":
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "s.npz"
                write_samples(
                    path, Samples(PIXELS, np.arange(4), {**dict.fromkeys(FACTS, 1), "seeds": "0-3"})
                )
                return path.read_bytes()
    return buffer.getvalue()


WHOLE = {kind: saved(kind) for kind in ("npy", "npz", "compressed", "samples")}


def opened(data, suffix):
    """The set in a file of these bytes, or None where there is a sentence instead."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        path.write_bytes(data)
        try:
            found = open_images(path)
        except UserError as error:
            assert "\n" not in str(error).strip() and str(path) in str(error)
            return None
        assert isinstance(found, ImageSet) and len(found.sha256) == 64 and len(found.shape) == 3
        return np.array(found.images)


@within_seconds
@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
    st.none() | st.floats(0, 1),
)
def test_damaged_files(kind, changes, cut):
    data = bytearray(WHOLE[kind])
    for where, value in changes:
        data[int(where * len(data))] = value
    if cut is not None:
        del data[int(cut * len(data)) :]
    found = opened(bytes(data), "npy" if kind == "npy" else "npz")
    if found is not None and kind != "npy":  # which has no sum of its bytes
        assert np.array_equal(found, PIXELS)


dtypes = st.sampled_from(("u1", "i1", "u2", "<f4", ">f8", "?", "c8", "O", "U3", "V2", "M8[s]", [("a", "u1")]))
shapes = st.lists(st.sampled_from((0, 1, 2, 3, 5)), max_size=6).map(tuple)
orders = st.sampled_from(("C", "F"))


@within_seconds
@given(
    st.sampled_from(("npy", "npz", "compressed")),
    st.sampled_from(("arr_0", "images", "arr_1", "meta", "seeds", "x/y", "arr_0.npy")),
    dtypes,
    shapes,
    orders,
)
def test_arrays_of_any_kind(kind, name, dtype, shape, order):
    array = np.zeros(shape, dtype=np.dtype(dtype), order=order)
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, array)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(buffer, **{name: array})
    found = opened(buffer.getvalue(), "npy" if kind == "npy" else "npz")
    is_set = array.dtype == np.uint8 and len(shape) == 4 and 0 not in shape and shape[-1] in (1, 3)
    assert (found is not None) == (is_set and (kind == "npy" or name == "arr_0"))


@within_seconds
@given(st.dictionaries(st.sampled_from(("descr", "fortran_order", "shape", "more")), st.one_of(
    st.integers(-2, 2**63), st.booleans(), st.text(max_size=4), st.lists(st.integers(-1, 2**40), max_size=5).map(tuple),
)))  # fmt: skip
def test_headers_that_promise_too_much(changes):
    header = {"descr": "|u1", "fortran_order": False, "shape": PIXELS.shape} | changes
    text = repr(header).encode() + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + PIXELS.tobytes()
    found = opened(data, "npy")
    assert found is None or found.size <= PIXELS.size
