"""What the worker costs, beside what a user would otherwise run; each comparison in one run."""
