from selfcontrast.report.sweep_tables import latex, markdown


def test_markdown_escapes_cells() -> None:
    assert markdown(["K", "a|b"], [[1, "x_y"], [16, "<b>"]]) == (
        "| K | a\\|b |\n| --- | --- |\n| 1 | x\\_y |\n| 16 | \\<b\\> |\n"
    )


def test_latex_escapes_cells() -> None:
    assert latex(["K", "wins"], [[1, "50%"], [16, r"a_b\\c – −1"]]) == (
        "\\begin{tabular}{ll}\n\\toprule\nK & wins \\\\\n\\midrule\n1 & 50\\% \\\\\n"
        "16 & a\\_b\\textbackslash{}\\textbackslash{}c -- $-$1 \\\\\n\\bottomrule\n\\end{tabular}\n"
    )
