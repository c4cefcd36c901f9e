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


DATA: dict[str, Row] = {
    "SafeWatch, filtered, training": _row("13,794 2,160 3,260 8,681 2,218 2,480 15,744 48,337"),
    "SafeWatch-Real, validation": _row("141 57 73 99 30 84 160 644"),
    "SafeWatch-GenAI, test": _row("78 46 67 75 26 98 145 535"),
}
"""Table 2: videos of each class, and all."""

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

BACKBONES = ("Qwen3-VL-2B", "GRM2.5-Air", "LFM2.5-VL-450M")
"""The models of appendices E and F, as embedders and as reasoners."""

S1_VALIDATION: dict[str, Row] = {
    "Qwen3-VL-2B": _row("87.2 77.6 83.1 76.5 73.3 92.9 83.5 82.0 80.8"),
    "GRM2.5-Air": _row("86.5 77.6 90.9 82.7 70.0 89.4 78.7 82.3 81.8"),
    "LFM2.5-VL-450M": _row("86.5 67.3 87.0 85.7 66.7 92.9 73.8 80.0 80.1"),
}
"""Table 4: S1 by its embedding model, SafeWatch-Real."""

S1_TEST: dict[str, Row] = {
    "Qwen3-VL-2B": _row("93.6 52.2 64.2 52.0 73.1 88.8 87.6 73.1 72.6"),
    "GRM2.5-Air": _row("93.6 45.7 76.1 69.3 42.3 87.8 77.2 69.6 70.3"),
    "LFM2.5-VL-450M": _row("89.7 45.7 59.7 58.7 57.7 87.8 70.3 67.1 66.5"),
}
"""Table 5: the same, SafeWatch-GenAI."""

S2_VALIDATION: dict[tuple[str, str], Row] = {
    ("Qwen3-VL-2B", "Qwen3-VL-2B"): _row(
        "87.0±0.3 78.9±0.9 80.9±1.2 85.7±2.9 74.4±1.6 92.6±1.1 73.6±1.1 81.9±0.9 80.0±0.8"
    ),
    ("GRM2.5-Air", "Qwen3-VL-2B"): _row(
        "88.7±0.8 77.6±0.0 88.3±1.3 86.8±1.0 73.3±0.0 89.4±0.0 70.4±0.3 82.0±0.2 80.5±0.2"
    ),
    ("LFM2.5-VL-450M", "Qwen3-VL-2B"): _row(
        "87.6±0.4 70.4±1.0 87.0±1.3 88.8±1.0 73.3±0.0 92.9±0.0 65.0±1.0 80.7±0.1 79.1±0.3"
    ),
    ("Qwen3-VL-2B", "GRM2.5-Air"): _row(
        "88.7±0.0 70.4±5.1 84.4±1.3 83.7±2.1 68.3±1.6 90.6±1.2 75.9±0.9 80.3±1.5 79.7±1.2"
    ),
    ("GRM2.5-Air", "GRM2.5-Air"): _row(
        "87.9±0.6 70.1±2.6 88.7±0.6 84.0±0.5 67.8±1.6 87.4±1.1 73.6±0.6 79.9±0.4 79.4±0.5"
    ),
    ("LFM2.5-VL-450M", "GRM2.5-Air"): _row(
        "89.8±1.0 62.2±1.0 87.7±0.6 88.8±2.0 68.3±1.6 87.7±1.8 67.7±0.0 78.8±0.9 78.9±0.9"
    ),
    ("Qwen3-VL-2B", "LFM2.5-VL-450M"): _row(
        "87.9±0.0 78.5±3.0 83.1±2.6 83.7±4.1 71.7±1.6 92.3±0.6 75.3±4.0 81.8±1.1 80.5±1.2"
    ),
    ("GRM2.5-Air", "LFM2.5-VL-450M"): _row(
        "86.2±0.4 78.6±1.0 89.6±2.6 84.2±0.5 70.0±3.3 88.2±0.0 73.2±1.2 81.5±0.0 80.4±0.4"
    ),
    ("LFM2.5-VL-450M", "LFM2.5-VL-450M"): _row(
        "82.5±0.9 69.4±2.9 83.1±1.8 85.0±1.2 65.6±1.6 88.6±0.6 61.8±3.3 76.6±1.3 75.5±1.1"
    ),
}
"""Table 6: S2 by embedding and reasoning model, SafeWatch-Real."""

S2_TEST: dict[tuple[str, str], Row] = {
    ("Qwen3-VL-2B", "Qwen3-VL-2B"): _row(
        "92.3±0.0 62.3±2.7 65.7±1.2 77.8±5.4 70.5±1.8 89.8±1.4 78.4±0.3 76.7±0.5 75.3±0.5"
    ),
    ("GRM2.5-Air", "Qwen3-VL-2B"): _row(
        "94.2±0.7 50.0±0.0 74.6±0.0 74.7±1.4 55.8±2.0 84.7±0.0 69.3±0.4 71.9±0.5 71.4±0.3"
    ),
    ("LFM2.5-VL-450M", "Qwen3-VL-2B"): _row(
        "84.6±1.3 53.2±1.0 60.5±0.8 77.3±1.4 61.5±0.0 89.3±0.5 63.5±3.5 70.0±0.5 68.2±0.8"
    ),
    ("Qwen3-VL-2B", "GRM2.5-Air"): _row(
        "96.8±0.6 53.2±1.0 66.5±0.8 78.7±4.0 71.2±1.9 87.2±1.5 76.9±0.3 75.8±0.2 74.7±0.1"
    ),
    ("GRM2.5-Air", "GRM2.5-Air"): _row(
        "95.3±0.6 47.8±3.6 74.1±0.7 76.0±0.0 46.2±6.2 83.0±0.5 71.7±3.1 70.6±0.9 70.7±0.8"
    ),
    ("LFM2.5-VL-450M", "GRM2.5-Air"): _row(
        "91.0±0.0 42.4±3.3 62.7±0.0 74.7±1.4 59.6±1.9 85.7±1.0 54.1±1.8 67.2±0.9 65.4±0.9"
    ),
    ("Qwen3-VL-2B", "LFM2.5-VL-450M"): _row(
        "91.7±0.6 53.2±1.0 63.5±0.8 68.7±0.6 73.1±3.9 89.3±0.5 76.9±0.3 73.8±0.5 72.5±0.5"
    ),
    ("GRM2.5-Air", "LFM2.5-VL-450M"): _row(
        "93.0±2.0 48.9±1.1 75.3±0.8 70.0±0.7 48.1±1.9 84.2±0.5 73.4±0.4 70.4±0.4 70.6±0.4"
    ),
    ("LFM2.5-VL-450M", "LFM2.5-VL-450M"): _row(
        "79.5±1.1 55.8±1.0 56.2±1.9 72.9±1.7 62.8±4.8 87.1±1.3 59.3±3.9 67.6±0.9 65.9±1.1"
    ),
}
"""Table 7: the same, SafeWatch-GenAI."""
