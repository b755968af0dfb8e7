"""OCR example: a pipeline of text detection and text recognition with real models, on rendered pages."""
