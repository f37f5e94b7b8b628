"""The stages of a job: the settings, inputs and computation of each. `pipeline.py` defines their order."""
