"""Which tokens to learn: an expert's rationales against an amateur's (arXiv 2510.07962)."""
