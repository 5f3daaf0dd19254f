"""Models under lm-eval: the model class, what it reads once and forks, tasks of the kit's own, and the report."""
