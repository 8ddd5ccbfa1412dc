"""Raw data and teachers' outputs as examples."""
