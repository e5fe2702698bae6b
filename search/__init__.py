"""Which blocks? The space, the scores, and the exact choice under budgets."""
