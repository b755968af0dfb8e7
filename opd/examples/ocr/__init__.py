"""The OCR pipeline that is served for real: rendered pages, text detection, text recognition."""
