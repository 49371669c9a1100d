"""Step-aware networks: one set of weights at several widths, and a width for each step [yang2024ddsm].

`sandwich` trains the widths (arXiv 2310.03337, Sec. 3.1), `cost` says what a call at each of them costs, and `widths`
looks for which step can do with how little (Sec. 3.2).
"""
