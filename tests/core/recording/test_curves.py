"""The picture of a run."""

import math
import subprocess
import sys

import numpy as np

from llama_jax.core.recording.curves import _running_median, draw_curves

PNG = b"\x89PNG\r\n\x1a\n"


def test_few_and_many_steps_are_drawn(tmp_path):
    for count in (1, 20, 300):
        records = [
            {"step": s, "loss": 2 + 1 / s, "grad_norm": 1.0, "tokens": s, "validation_loss": None}
            for s in range(1, count + 1)
        ]
        draw_curves(records, tmp_path / f"{count}.png")
        assert (tmp_path / f"{count}.png").read_bytes().startswith(PNG)


def test_missing_and_non_finite_values_do_not_matter(tmp_path):
    records = [{"step": 1, "loss": math.nan, "grad_norm": math.inf}, {"step": 2, "loss": None}, {"step": 3}]
    draw_curves(records, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_no_records_make_no_picture(tmp_path):
    draw_curves([], tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def test_the_median_ignores_spikes_and_gaps():
    values = np.array([9.0, 5.0, 1.0, 1000.0, 3.0, math.nan, 2.0])
    steps, medians = _running_median(np.arange(7.0), values, 1)
    assert steps.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert medians.tolist() == [9.0, 5.0, 5.0, 3.0, 501.5, 2.5, 2.0]


def test_drawing_uses_no_global_figures(tmp_path):
    code = f"""
import sys
from llama_jax.core.recording.curves import draw_curves
draw_curves([{{"step": 1, "loss": 1.0}}], {str(tmp_path / "curves.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
