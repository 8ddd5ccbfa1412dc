"""One experiment over a grid: the cells, who runs them where, and what is shown of it."""
