"""The reproduction: notebook runner, evaluation, tables, figures."""
