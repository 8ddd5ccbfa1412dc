"""Importing this registers every task and mixture of the project, and does no I/O besides.

For programs that take a module to import, such as SeqIO's `seqio_cache_tasks --module_import=…` and
T5X's gin files; entry points of ours call `registration.load_task_files` themselves.
"""

from distill_sbs.data import registration

registration.load_task_files()
