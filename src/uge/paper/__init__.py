"""The paper's tables and figures as lists of cases, and the paper's numbers beside ours.

``facts``, ``scale``, ``specs``, ``tables``, ``federated``, ``results``, ``render`` and ``page`` need no torch;
``work`` and ``run`` do the cases.
"""
