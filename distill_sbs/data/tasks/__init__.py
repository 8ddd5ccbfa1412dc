"""From a record to the texts and tokens of one task."""
