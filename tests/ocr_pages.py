"""Rendered pages, and the chosen variants of the OCR pipeline."""

from opd.examples.ocr.pages import render_pages
from opd.examples.ocr.recipes import load_recipes

RECIPES = load_recipes()
DETECTION, RECOGNITION = (RECIPES.tasks[task].chosen for task in ("text-detection", "text-recognition"))
CLEAN = list(render_pages(4, seed=5, wear=0.0))
WORN = list(render_pages(6, seed=6))
