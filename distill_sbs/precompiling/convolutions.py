"""What the convolutions of a compiled program compute.

Enters: shapes and attributes of a convolution in a compiled program's text. Leaves: its FLOPs.
"""

from __future__ import annotations

import functools
import re


def convolution_flops(
    left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...], attributes: str
) -> float:
    """Twice the multiplications of a convolution that meet data and not its padding.

    The TPU compiler writes matrix products as convolutions, their batch dimensions as windows that
    are mostly padding and dilation, so those must not count.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    if labels is None:
        return 0.0
    left_labels, right_labels, result_labels = labels.groups()
    flops = 2.0 * result[result_labels.index("b")] * result[result_labels.index("f")]
    flops *= right[right_labels.index("i")]  # already a group's share of the input features
    window = re.search(r"window=\{([^{}]*)\}", attributes)
    fields = dict(re.findall(r"\b(\w++)=([\dx_\-]+)", window[1])) if window else {}
    spatial = [label for label in left_labels if label.isdigit()]
    for label in spatial:
        number = int(label)

        def of(field: str, default: str, number: int = number) -> str:
            parts = fields[field].split("x") if field in fields else []
            return parts[number] if number < len(parts) else default

        flops *= _meetings(
            inputs=left[left_labels.index(label)],
            window=int(of("size", str(right[right_labels.index(label)]))),
            outputs=result[result_labels.index(label)],
            stride=int(of("stride", "1")),
            low_padding=int(of("pad", "0_0").split("_")[0]),
            input_dilation=int(of("lhs_dilate", "1")),
            window_dilation=int(of("rhs_dilate", "1")),
        )
    return flops


@functools.cache
def _meetings(
    inputs: int,
    window: int,
    outputs: int,
    stride: int,
    low_padding: int,
    input_dilation: int,
    window_dilation: int,
) -> int:
    """How many pairs of output and window position meet an input of one spatial dimension."""
    count = 0
    last = (inputs - 1) * input_dilation
    for tap in range(window):
        offset = tap * window_dilation - low_padding
        # Outputs o with 0 <= o·stride + offset <= last, on the dilated input's own positions.
        first = max(0, -(offset // stride) if offset < 0 else 0)
        highest = min(outputs - 1, (last - offset) // stride)
        if input_dilation == 1:
            count += max(0, highest - first + 1)
        else:
            count += sum(
                (output * stride + offset) % input_dilation == 0
                for output in range(first, highest + 1)
            )
    return count
