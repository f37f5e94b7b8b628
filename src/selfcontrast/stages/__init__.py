"""The stages of a job: the settings, the inputs and the computation of each. `pipeline.py` has their order."""
