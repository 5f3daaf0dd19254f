"""The few recurrences that every rule lowers to, in plain torch; ``programs`` call several, ``numerics`` serve all."""
