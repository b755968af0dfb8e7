"""How sure the results are, and what each part of the agent contributes."""
