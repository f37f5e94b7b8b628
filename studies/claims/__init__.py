"""The paper's claims, judged from the results of any runs: python -m studies.claims DIR…"""
