"""Commands for a project folder."""
