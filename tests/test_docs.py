"""The pages in docs run from top to bottom, on data made on the spot."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGES = sorted((Path(__file__).resolve().parent.parent / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in ("circles", "squares"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.RandomState(i).randint(256, size=(20, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / kind / f"{i}.png")
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    if page.stem == "your_own_data":
        assert names["history"]["test_bound"][-1] > names["history"]["test_bound"][0]
        assert names["sevens"].shape == names["images"].shape == (4, 1, 8, 8)
