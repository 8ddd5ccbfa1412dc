"""From tokens to the batches of a step."""
