"""SVAMP augmented with ASDiv, which only the teacher has labelled (section 4.4 of the paper)."""

from distill_sbs.data import registration

registration.register_augmented("svamp_asdiv", "svamp", "asdiv", teacher="palm")
