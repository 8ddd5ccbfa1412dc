"""Where a budget of tokens goes: which mixture each interval of a training is spent on (ReAD).

Numbers in, numbers out: NumPy alone, neither JAX nor SeqIO. `distill_sbs.allocate` joins it with
data and trainer.
"""
