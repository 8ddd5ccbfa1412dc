"""Which examples a student is to learn from: rules, strata, and the choice among what is left."""
