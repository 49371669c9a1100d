"""Arrays and tensors with their shapes: jaxtyping's names where it is installed, else the plain types.

Shapes bind by name within one call: x: Float[AnyArray, "n d"] and y: Float[AnyArray, "m d"] have the same d. Nothing is
checked in use; the test run turns checks on, in tests/conftest.py.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float as Float
    from jaxtyping import Float32 as Float32
    from jaxtyping import Float64 as Float64
    from jaxtyping import Num as Num
    from jaxtyping import UInt8 as UInt8

    AnyArray = NDArray[Any]
else:
    AnyArray = np.ndarray
    try:
        from jaxtyping import Float, Float32, Float64, Num, UInt8
    except ImportError:

        class Float:
            """The array type alone."""

            def __class_getitem__(cls, array_and_shape):
                return array_and_shape[0]

        Float32 = Float64 = Num = UInt8 = Float

Images = Float[Tensor, "b c h w"]
