"""lm-eval tasks of the kit: one YAML a task, with its builder in Python beside it. None needs a network."""
