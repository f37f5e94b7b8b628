"""tmp"""
def write_report(result, folder): (folder/"report.html").write_text("tmp")
def print_result(result, folder):
    for r in result.comparison["rows"]:
        print(r["system"], r["decoding"], r["mean"], r.get("difference"), r.get("p_value"), r["surprise"], r["tokens"])
    print(folder)
