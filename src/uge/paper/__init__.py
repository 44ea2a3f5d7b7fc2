"""Tables and figures of the paper as lists of training runs, with the paper's numbers beside ours.

Plans, results and pages need no torch; ``run`` carries a plan out.
"""
