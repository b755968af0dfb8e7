"""Figures as SVG, where one lies beside the PNG that a page names: sharp at every size. GitHub shows the PNG."""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class VectorFigures(SphinxTransform):
    """Put SVG files in the place of PNG files of the same name."""

    default_priority = 100  # before images are collected

    def apply(self) -> None:
        """Change the images of one page."""
        for image in self.document.findall(nodes.image):
            uri = Path(image["uri"])
            _, path = self.env.relfn2path(image["uri"], self.env.docname)
            if uri.suffix == ".png" and Path(path).with_suffix(".svg").is_file():
                image["uri"] = uri.with_suffix(".svg").as_posix()


def setup(app: Sphinx) -> dict[str, bool]:
    """Change pages as they are read."""
    app.add_transform(VectorFigures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
