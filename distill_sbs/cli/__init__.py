"""The command line: flags, gin files, and what an entry point shows while it works."""
