"""Federations: several servers protect their own parts of the data for one global network (Eq. 14, 15, Table 9)."""
