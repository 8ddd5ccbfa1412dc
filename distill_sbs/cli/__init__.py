"""The command line: flags, gin files, and what an entry point shows while it works."""

from distill_sbs.cli import interrupts

# Here, for it is the first of ours that an entry point imports, and the others take a while.
interrupts.watch()
