"""The live view of a pipeline that is controlled: one model, shown in the terminal and on a page."""
