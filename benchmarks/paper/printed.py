"""What the SafeLens paper prints, to stand beside our figures; measured by its authors on SafeWatch, not here.

Knows numbers and where they stand. Per cent; "mean±deviation" over three runs where it gives one.
"""

from __future__ import annotations

COLUMNS = (
    "Sexual",
    "Abuse",
    "Violence",
    "Misinfo",
    "Illegal",
    "Extreme",
    "Safe",
    "Avg ACC",
    "Macro F1",
)
"""The seven classes and their two means, as in all of the paper's tables of accuracy."""

Row = tuple[str, ...]


def _row(text: str) -> Row:
    return tuple(text.split())


TEST: dict[str, Row] = {
    "Qwen3-VL-2B": _row(
        "86.3±1.2 0.0±0.0 80.1±0.7 3.1±1.7 3.8±0.0 0.0±0.0 95.6±1.1 38.4±0.2 30.3±0.1"
    ),
    "Qwen3-VL-2B-ft": _row(
        "96.2±0.0 26.8±1.0 68.7±0.0 85.3±4.0 51.3±1.8 86.0±0.5 45.0±1.2 65.6±0.5 64.3±0.4"
    ),
    "SafeLens-S1": _row(
        "93.6±0.0 52.2±0.0 64.2±0.0 52.0±0.0 73.1±0.0 88.8±0.0 87.6±0.0 73.1±0.0 72.6±0.0"
    ),
    "SafeLens-S2": _row(
        "92.3±0.0 62.3±2.7 65.7±1.2 77.8±5.4 70.5±1.8 89.8±1.4 78.4±0.3 76.7±0.5 75.3±0.5"
    ),
    "SafeLens": _row(
        "92.3±0.0 62.3±2.7 65.7±1.2 76.4±3.5 70.5±1.8 89.8±1.4 79.5±0.9 76.7±0.2 75.3±0.2"
    ),
}
"""Of table 3, SafeWatch-GenAI (test): the systems that are ours in small."""

VALIDATION: dict[str, Row] = {
    "Qwen3-VL-2B": _row(
        "79.9±2.0 4.8±0.9 59.3±0.6 3.7±1.3 2.2±1.6 0.8±0.6 94.9±0.3 35.1±0.4 30.6±0.4"
    ),
    "Qwen3-VL-2B-ft": _row(
        "88.6±1.0 48.3±1.9 80.9±1.2 90.1±2.6 57.8±1.6 91.4±1.5 54.1±3.2 73.0±0.4 73.5±0.6"
    ),
    "SafeLens-S1": _row(
        "87.2±0.0 77.6±0.0 83.1±0.0 76.5±0.0 73.3±0.0 92.9±0.0 83.5±0.0 82.0±0.0 80.8±0.0"
    ),
    "SafeLens-S2": _row(
        "87.0±0.3 78.9±0.9 80.9±1.2 85.7±2.9 74.4±1.6 92.6±1.1 73.6±1.1 81.9±0.9 80.0±0.8"
    ),
    "SafeLens": _row(
        "87.9±0.0 78.9±0.9 83.1±1.1 78.2±1.9 74.4±1.6 93.3±0.6 84.6±0.3 82.9±0.5 81.7±0.4"
    ),
}
"""Of appendix D, SafeWatch-Real (validation)."""

FILTERING: dict[str, Row] = {
    "unfiltered": _row(
        "88.6±1.0 21.1±2.5 69.7±1.6 64.9±3.9 64.4±1.6 84.3±2.7 86.4±1.1 68.5±0.6 69.7±0.2"
    ),
    "filtered": _row(
        "88.6±1.0 48.3±1.9 80.9±1.2 90.1±2.6 57.8±1.6 91.4±1.5 54.1±3.2 73.0±0.4 73.5±0.6"
    ),
}
"""Table 8: Qwen3-VL-2B fine-tuned on either, SafeWatch-Real."""

SECONDS: dict[str, float] = {"SafeLens": 1.76, "SafeLens-S2": 5.02}
"""Of figure 3: per video of the test set, on a B200."""
