"""A page of sections shows every part and needs nothing from outside."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from stillroom.reports.page import Figure, Page, Section, environment, picture, write_page
from stillroom.reports.plots import svg
from stillroom.reports.tables import Column, Table


def test_a_page_holds_sentences_tables_plots_and_pictures(tmp_path: Path) -> None:
    drawn = svg(lambda figure: figure.subplots().plot([1, 2]), 3, 2)
    image = picture(np.arange(16, dtype=np.uint8).reshape(4, 4), "a small image", least=12)
    table = Table([Column("solver"), Column("error", ".2f")], [["<euler>", 0.5]])
    page = Page(
        kind="sampling report",
        title="Five steps",
        headline="It went well.",
        sections=[
            Section(title="Result", text="Read this.", parts=[table, Figure(drawn, "a line"), image], note="Done.")
        ],
        config={"nfe": 5},
        environment=environment(),
        command="stillroom diffusion sample",
    )
    write_page(tmp_path / "report.html", page)
    html = (tmp_path / "report.html").read_text()
    for text in ("sampling report", "Five steps", "Read this.", "&lt;euler&gt;", "0.50", "<svg", "a line", "Done."):
        assert text in html
    assert "http://" not in html
    assert "https://" not in html
    shown = Image.open(io.BytesIO(base64.b64decode(image.png)))
    assert shown.size == (12, 12)
    assert image.png in html
