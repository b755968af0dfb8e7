"""Evaluation (Sec. VI) of policies and trainings, as tables."""
