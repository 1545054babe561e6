"""Search: filters and ranking of memories. Read only.

    filters.py   filters of searches and lists
    metadata.py  conditions on metadata, compiled to one jsonpath
    likeness.py  memories with close vectors
    ranking.py   the call of the ranking function (memories/sql/agentmem_search.sql)

Scores start at 0, and higher is better; docs/decisions/0006 explains them.
"""
