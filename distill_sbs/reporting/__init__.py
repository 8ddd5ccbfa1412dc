"""From the folders of runs to tables, figures and findings; the entry point is `report.py`."""
