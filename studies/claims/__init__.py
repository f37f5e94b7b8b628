"""Judge the paper's claims from the results of any runs: python -m studies.claims DIR…"""
